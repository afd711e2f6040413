#!/usr/bin/env bash
# Installs a wheel beside several Pythons and torches, each pair in a fresh environment, and tests it there.
#
#   tools/test_versions.sh WHEEL PYTHON:TORCH... [-- PYTEST ARGUMENTS]
#
#   tools/test_versions.sh dist/*.whl 3.10:2.11.0 3.13:newest -- -m "not slow"
#
# Wants uv on the path, which keeps what it has downloaded and links it from there. Ends in a short table.
# TEST_PACKAGES: what the tests get besides (default: what those of the library need).
set -uo pipefail

wheel="${1:-}"
if [[ ! -f "$wheel" || $# -lt 2 ]]; then
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  [[ "$wheel" == --help || "$wheel" == -h ]] && exit 0 || exit 2
fi
wheel="$(realpath "$wheel")"
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
read -ra packages <<< "${TEST_PACKAGES:-numpy pytest pytest-xdist hypothesis setuptools ninja}"
# pyenv hides all Pythons but one; packages beside the machine, as pip is told of them, serve uv as well.
if command -v pyenv > /dev/null; then
  PYENV_VERSION="$(pyenv versions --bare | grep -E '^3\.1[0-9]' | paste -sd:)"
  export PYENV_VERSION
fi
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
unset PYTHONPATH VIRTUAL_ENV

pairs=()
while [[ $# != 0 && "$1" != -- ]]; do pairs+=("$1"); shift; done
[[ $# == 0 ]] || shift
[[ ${#pairs[@]} != 0 ]] || { echo "expected PYTHON:TORCH, got no pair" >&2; exit 2; }

failed=0
table=""
for pair in "${pairs[@]}"; do
  python="${pair%%:*}" torch="${pair#*:}"
  folder="build/versions/py$python-torch$torch"
  log="$folder.log"
  mkdir -p build/versions
  [[ "$torch" == newest ]] && wanted=torch || wanted="torch==$torch"
  echo "== Python $python, $wanted"
  started=$SECONDS
  told="NOT INSTALLED" spent=0
  if { uv venv --quiet --clear --python "$python" "$folder" &&
    uv pip install --quiet --python "$folder" "$wanted" "${packages[@]}" "$wheel"; } > "$log" 2>&1; then
    spent=$((SECONDS - started))
    # From elsewhere: here Python would import the sources.
    (cd / && "$OLDPWD/$folder/bin/python" -m mgassign)
    status=$?
    "$folder/bin/pytest" --installed --pyargs mgassign tests -q -p no:cacheprovider "$@" >> "$log" 2>&1 || status=$?
    told="$(tail -n 1 "$log")"
  else
    status=1
  fi
  if [[ $status != 0 ]]; then
    failed=1
    grep -E '^(FAILED|ERROR)|^E  |[Ee]rror' "$log" | head -n 40
  else
    rm -rf "$folder"  # gigabytes; one that failed stays, to be looked at
  fi
  table+="$(printf '%-14s installed %4d s, tested %4d s: %s' "$pair" "$spent" $((SECONDS - started - spent)) "$told")"$'\n'
done
printf '\n%s' "$table"
exit $failed
