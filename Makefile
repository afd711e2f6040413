# Each target sets itself up, on a fresh machine too: a virtual environment in .venv, the versions of
# constraints.txt, the compiled libraries. Running it again does only what has changed.
#
#   ARGS          passed on:              make test ARGS="-k iou"
#   PYTHON        for a new .venv:        make test PYTHON=python3.12
#   CONSTRAINTS   the versions to use:    make test CONSTRAINTS=/dev/null (the newest)
#   MGASSIGN_CUDA auto, 1 or 0:           make test MGASSIGN_CUDA=0 (no CUDA kernels; see setup.py)
#   MGASSIGN_STRICT 1: warnings, and kernels that spill, are errors

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
PACKAGES := torch torchvision setuptools ninja cmake pybind11 numpy pytest hypothesis matplotlib pillow pycocotools \
            tensorboard tqdm ruff mypy clang-format

# As if .venv were activated: torch and CMake look for ninja on the path, CMake for Python in VIRTUAL_ENV.
export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(VIRTUAL_ENV)/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MGASSIGN_CUDA ?= auto

installed := .venv/installed
settings := .venv/settings
library := mgassign/_C.abi3.so
sources = setup.py $(wildcard csrc/*.* csrc/cpu/* csrc/cuda/* csrc/math/*)
cxx_files = $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

.PHONY: help demo train test lint bench math clean FORCE

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | expand -t 8

demo: $(library)  ## write the paper's Figure 1 to demo/figure1.png (ARGS="--help" says more)
	@.venv/bin/python examples/demo.py $(ARGS)

# Small enough for a CPU; examples/fcos/README.md has the paper's settings.
quick := --size 128 --width 64 --batch 8 --epochs 12 --augment flip --cache ram --channels-last --eval-every 5
checkpoint = runs/quick/resnet18-$(1)-0/last.pt
train: $(library)  ## train FCOS on drawn images with both strategies: runs/quick gets a table and two figures
	@.venv/bin/python examples/fcos/compare.py runs/quick --seeds 0 $(ARGS) -- $(quick)
	@.venv/bin/python examples/fcos/figures.py --data runs/drawn:test --output runs/quick \
	  --original $(call checkpoint,original) --mutual $(call checkpoint,mutual)

test: $(library) math  ## run the tests
	@.venv/bin/python -m pytest $(ARGS)

lint: $(installed)  ## check style and types, change nothing
	@.venv/bin/ruff check --quiet
	@.venv/bin/ruff format --check --quiet
	@.venv/bin/mypy
	@.venv/bin/clang-format --dry-run --Werror $(cxx_files)

bench: $(library)  ## time the assignment against its peers
	@.venv/bin/python benchmarks/bench_assign.py $(ARGS)

clean:  ## remove all that the other targets made, .venv included
	rm -rf .venv build demo runs/drawn runs/quick mgassign/*.so *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find mgassign tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

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

chosen = echo "$$MGASSIGN_CUDA $$MGASSIGN_STRICT $$MGASSIGN_SANITIZE $$TORCH_CUDA_ARCH_LIST $$CUDA_HOME"
$(settings): FORCE | $(installed)
	@$(chosen) | cmp -s - $@ || $(chosen) > $@
