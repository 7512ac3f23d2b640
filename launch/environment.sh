# shellcheck shell=bash
# Sourced by the other scripts: a virtual environment with what FILE lists, made once and brought up to date when FILE changes.
#
#   SEGEARTH_R2_PYTHON   the interpreter to build it with (default: python3.11, python3.12, ... or python3, the first that is there)
#   SEGEARTH_R2_VENV     where it lives (default: .venv beside the repository's files, .venv-X.Y for an interpreter chosen by hand)

_usable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2])' > /dev/null 2>&1; }

_find_python() {
  if [ -n "${SEGEARTH_R2_PYTHON:-}" ]; then
    _usable "$SEGEARTH_R2_PYTHON" || { echo "SEGEARTH_R2_PYTHON=$SEGEARTH_R2_PYTHON is not Python 3.11 or newer" >&2; return 2; }
    echo "$SEGEARTH_R2_PYTHON"; return
  fi
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if _usable "$candidate"; then echo "$candidate"; return; fi
  done
  echo "Python 3.11 or newer is needed; name one with SEGEARTH_R2_PYTHON=/path/to/python3.12" >&2
  return 2
}

# install_environment REQUIREMENTS_FILE: leaves its interpreter in $PYTHON.
install_environment() {
  local requirements="$1" base version venv stamp wanted
  base="$(_find_python)" || return
  version="$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
  venv="${SEGEARTH_R2_VENV:-.venv${SEGEARTH_R2_PYTHON:+-$version}}"
  stamp="$venv/.installed-$(basename "$requirements")"
  wanted="$(cat requirements*.txt pyproject.toml | cksum) $version"
  PYTHON="$venv/bin/python"
  if [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2> /dev/null)" = "$wanted" ]; then return; fi
  echo "installing $requirements into $venv (Python $version); a few minutes, once"
  [ -x "$PYTHON" ] || "$base" -m venv "$venv" || return
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --upgrade pip || return
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements" || return
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --editable . || return
  echo "$wanted" > "$stamp"
}

# What these scripts install runs on the CPU; JAX_PLATFORMS=cuda or tpu chooses otherwise.
use_cpu_by_default() {
  export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
  # libtpu, which the tests compile with, would look for a TPU host's metadata and complain.
  if [ "$JAX_PLATFORMS" = cpu ]; then export TPU_SKIP_MDS_QUERY=1; fi
}
