#!/usr/bin/env bash
# Checks mgassign on a machine with an NVIDIA GPU, part after part, the most telling first.
#
#   tools/gpu_check.sh RESULTS              all parts
#   tools/gpu_check.sh RESULTS PART...      some: versions build tests benchmark lists assigners jit memcheck racecheck
#                                           initcheck synccheck rest
#
# RESULTS gets summary.txt, a line for each part as it ends; logs.tar, what each printed (running.log: the one that was
# cut off); cuda.json and lists.json, figures. Every part is done within 8 minutes, the first three within 6 together.
# Uses the Python named by PYTHON (default python3) with the packages it has; downloads nothing.
set -uo pipefail

parts=(versions build tests benchmark lists assigners jit memcheck racecheck initcheck synccheck rest)
usage() { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "" | -*) usage >&2; exit 2 ;;
esac
mkdir -p "$1" || exit 2
results="$(cd "$1" && pwd)"
shift
for part in "$@"; do
  [[ " ${parts[*]} " == *" $part "* ]] || { echo "no part $part; there are ${parts[*]}" >&2; exit 2; }
done
[[ $# == 0 ]] || parts=("$@")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD" MGASSIGN_CUDA=1
# Without a GPU, and without kernels, all GPU tests are skipped, and the parts would pass.
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "torch sees no GPU" >&2; exit 1; }
[[ " ${parts[*]} " == *" build "* ]] ||
  "$python" -c 'import sys; from mgassign import _library; sys.exit(_library.cuda_library is None)' ||
  { echo "no CUDA kernels are built: name the part build, too" >&2; exit 1; }
most_log_bytes=1000000
# What stands in for a GPU where there is none has no place here.
pytest=("$python" -m pytest -q -rs -p no:cacheprovider -m "not ptx")

versions() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total --format=csv &&
    "$python" -c 'import sys, setuptools, torch
print("Python", sys.version, "torch", torch.__version__, "CUDA", torch.version.cuda, "setuptools", setuptools.__version__)
print(torch.cuda.get_device_name(), "compute capability", torch.cuda.get_device_capability())' &&
    for tool in ninja g++ nvcc compute-sanitizer; do
      printf '%s: ' "$tool"
      { "$tool" --version || echo "not found"; } 2>&1 | grep -E '[0-9]+\.[0-9]|not found' | tail -n 1
    done
}

# For the architectures of a wheel, as if no GPU were there to build for: what ships is what is checked.
build() {
  env -u TORCH_CUDA_ARCH_LIST -u MGASSIGN_STRICT CUDA_VISIBLE_DEVICES= "$python" setup.py build_ext --inplace --force &&
    "$python" -m mgassign
}

tests() { "${pytest[@]}" tests/test_cuda.py tests/test_cuda_kernels.py; }

benchmark() { "$python" benchmarks/bench_assign.py --device cuda --json "$results/cuda.json"; }

lists() { "$python" benchmarks/bench_assign.py --device cuda --objects list --json "$results/lists.json"; }

# The kernels of the other assigners.
others=(tests/test_task_aligned_cuda.py tests/test_dynamic_k_cuda.py tests/test_atss_cuda.py tests/test_anchors_cuda.py)
assigners() { "${pytest[@]}" "${others[@]}"; }

# The PTX of a wheel, of which the driver makes what newer GPUs run.
jit() {
  CUDA_FORCE_PTX_JIT=1 CUDA_CACHE_DISABLE=1 "${pytest[@]}" tests/test_cuda_kernels.py "${others[@]}" -k GPU
}

# compute-sanitizer slows kernels down a hundredfold: some small cases. Whether it found anything, its own last line says.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 "${pytest[@]}" -x \
    tests/test_cuda_kernels.py "${others[@]}" \
    -k 'GPU and (three or eight or forms or building or images or 40-70 or 700-3 or huge)' &&
    tail -n 1 "$log" | grep -qE '^=+ (ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)'
}
memcheck() { sanitize memcheck; }
racecheck() { sanitize racecheck; }
initcheck() { MGASSIGN_FILL=0 sanitize initcheck; }  # who fills new tensors hides what is read of them
synccheck() { sanitize synccheck; }

# The CPU's tests. The math module wants CMake and pybind11; without them its tests are left out.
rest() {
  local without=(tests/test_cuda.py tests/test_cuda_kernels.py "${others[@]}")
  without=("${without[@]/#/--ignore=}")
  cmake --preset release -DPython_EXECUTABLE="$(command -v "$python")" && cmake --build build/release ||
    without+=(--ignore=tests/test_math.py)
  "${pytest[@]}" "${without[@]}"
}

declare -A seconds=([versions]=60 [build]=150 [tests]=150)
log="$results/running.log"
export -f "${parts[@]}" sanitize
export results python log
failed=0
for part in "${parts[@]}"; do
  echo "== $part"
  started=$SECONDS state=passed
  timeout "${seconds[$part]:-450}" bash -c "$(declare -p pytest others); $part" > "$log" 2>&1 || state="FAILED ($?)"
  said="$(grep -E '^(=+ (ERROR|RACECHECK) SUMMARY|=* ?[0-9]+ (passed|failed)|Compared with the CPU|NVIDIA|.*error:)' "$log")"
  printf '%-10s %4d s  %-13s %s\n' "$part" $((SECONDS - started)) "$state" "${said##*$'\n'}" |
    tee -a "$results/summary.txt"
  [[ "$state" == passed ]] || { failed=1; tail -n 30 "$log"; }
  tail -c $most_log_bytes "$log" > "$results/$part.log"
  tar --append --file "$results/logs.tar" -C "$results" "$part.log"
  rm "$log" "$results/$part.log"
  [[ "$part" == build && "$state" != passed ]] && break
done
exit $failed
