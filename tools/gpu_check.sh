#!/usr/bin/env bash
# Checks mgassign on a machine with an NVIDIA GPU: build, tests, sanitizers, benchmark. Ends in a short table.
#
#   tools/gpu_check.sh RESULTS     logs and cuda.json go into this folder
#
# Uses the Python named by PYTHON (default python3) with the packages it has; downloads nothing. About 6 minutes.
set -uo pipefail

if [[ $# != 1 || "$1" == -* ]]; then
  sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  [[ "${1:-}" == --help || "${1:-}" == -h ]] && exit 0 || exit 2
fi
mkdir -p "$1" || exit 2
results="$(cd "$1" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD" MGASSIGN_CUDA=1
failed=0
table=""

# step NAME COMMAND...: runs it, its output into RESULTS/NAME.log.
step() {
  local name="$1" started=$SECONDS state=passed
  shift
  echo "== $name"
  "$@" > "$results/$name.log" 2>&1 || state="FAILED ($?)"
  if [[ "$state" != passed ]]; then
    failed=1
    tail -n 30 "$results/$name.log"
  fi
  table+="$(printf '%-12s %4d s  %-12s %s' "$name" $((SECONDS - started)) "$state" \
    "$(grep -E '^(=+ .*(passed|failed)|========= ERROR SUMMARY|[0-9]+ (passed|failed))' "$results/$name.log" | tail -n 1)")"$'\n'
}

versions() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total --format=csv &&
    "$python" -c 'import sys, torch; print(sys.version); print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())'
}

build() {
  local arch
  arch="$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')" &&
    TORCH_CUDA_ARCH_LIST="$arch" "$python" setup.py build_ext --inplace --force && "$python" -m mgassign
}

# compute-sanitizer slows kernels down a hundredfold: some small cases.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 120 compute-sanitizer --tool "$1" --error-exitcode 1 \
    "$python" -m pytest -q -x -p no:cacheprovider tests/test_cuda_kernels.py \
    -k 'GPU and (three or eight or forms or building or images or 40-70 or 700-3 or huge)'
}

step versions versions
step build build
[[ $failed == 0 ]] || exit 1
# The math module wants CMake and pybind11; without them its tests, which are the CPU's, are left out.
without=()
if "$python" -c 'import pybind11' 2> /dev/null && command -v cmake > /dev/null; then
  step math bash -c "cmake --preset release -DPython_EXECUTABLE='$(command -v "$python")' && cmake --build build/release"
else
  without=(--ignore tests/test_math.py)
fi
# Without the kernels on host threads: they stand in for a GPU where there is none.
step tests timeout 240 "$python" -m pytest -q -rs -p no:cacheprovider -k 'not host' "${without[@]}"
for tool in memcheck racecheck initcheck synccheck; do step "$tool" sanitize "$tool"; done
step benchmark timeout 200 "$python" benchmarks/bench_assign.py --device cuda --json "$results/cuda.json"

cat "$results/benchmark.log"
printf '\n%s' "$table" | tee "$results/summary.txt"
exit $failed
