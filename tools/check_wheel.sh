#!/usr/bin/env bash
# Names a wheel for the oldest system it runs on, and proves the name: any Python, glibc 2.28, torch's stable ABI, 1 MB.
#
#   tools/check_wheel.sh BUILT FOLDER     the renamed wheel goes into the folder, if it is proven; wants auditwheel and torch-abi-audit
#
# With MGASSIGN_CUDA=1 the wheel must hold CUDA kernels.
set -euo pipefail

if [[ $# != 2 || ! -f "$1" ]]; then
  sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  [[ "${1:-}" == --help || "${1:-}" == -h ]] && exit 0 || exit 2
fi
built="$1"
mkdir -p "$2"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

if [[ "$built" == *-linux_*.whl ]]; then
  # Fails where a library asks for a newer glibc than the name says. torch brings its own libraries, CUDA's too.
  arch="${built##*-linux_}"
  auditwheel repair --plat "manylinux_2_28_${arch%.whl}" --only-plat --wheel-dir "$work/renamed" --exclude 'libtorch*.so' \
    --exclude 'libc10*.so' --exclude 'libcudart.so.*' "$built" 2> "$work/log" || {
    cat "$work/log"
    auditwheel show "$built"
    echo "$built: too new a libstdc++ may come from g++ 13 or newer: CC=gcc-12 CXX=g++-12 make wheel" >&2
    exit 1
  }
  built="$(echo "$work"/renamed/*.whl)"
  auditwheel show "$built"
fi
wheel="$(basename "$built")"

python3 -m zipfile -e "$built" "$work/unpacked"
torch-abi-audit --verbose --check torch "$work/unpacked/mgassign"
python3 -m zipfile -l "$built"

# Nothing but the package: one library for the CPU, at most one for CUDA.
others="$(cd "$work/unpacked" && find . -type f -not -path './*.dist-info/*' -not -name '*.py' -not -name py.typed \
  -not -path './mgassign/_C*')"
libraries="$(find "$work/unpacked/mgassign" -name '_C.*' | wc -l) $(find "$work/unpacked/mgassign" -name '_C_cuda*' | wc -l)"
case "${MGASSIGN_CUDA:-auto} $libraries" in
  "1 1 1" | auto\ 1\ [01] | "0 1 0") ;;
  *) others+=" libraries for CPU and CUDA: $libraries" ;;
esac
[[ -z "$others" ]] || { echo "$wheel: expected the package and its libraries alone, got $others" >&2; exit 1; }
[[ "$wheel" == *-py3-none-* ]] || { echo "$wheel: expected a wheel for every Python" >&2; exit 1; }
size="$(wc -c < "$built")"
echo "$wheel: $size bytes"
[[ "$size" -le 1000000 ]] || { echo "$wheel: expected at most 1 MB, got $size bytes" >&2; exit 1; }

cp "$built" "$2/.$wheel"
rm -f "$2"/mgassign-*-"${wheel##*-}"
mv "$2/.$wheel" "$2/$wheel"
