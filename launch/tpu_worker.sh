#!/usr/bin/env bash
# What launch/tpu_vm.sh runs on each worker of a TPU slice, in the folder with the repository's files:
#
#   install          a virtual environment with what a TPU needs; on an older image than Python 3.11 uv brings an interpreter
#   start VERB ...   starts `segearth-r2 VERB ...` in the background, again after a preemption or a crash; its output goes to run.log
#   status           one line: running or not, and the last line of the log
#   stop             asks it to save and leave, and waits for that
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."

running() { [ -e run.pid ] && kill -0 "$(cat run.pid)" 2> /dev/null; }
fail() { echo "tpu_worker.sh: error: $1" >&2; exit 2; }

case "${1:-}" in
  install)
    source launch/environment.sh
    if ! SEGEARTH_R2_PYTHON="$(_find_python 2> /dev/null)"; then
      python3 -m pip install --quiet --user uv
      python3 -m uv python install 3.12
      SEGEARTH_R2_PYTHON="$(python3 -m uv python find 3.12)"
    fi
    export SEGEARTH_R2_PYTHON SEGEARTH_R2_VENV=.venv
    install_environment requirements.txt
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable ".[tpu,gcs]"
    ;;
  start)
    shift
    [ -x .venv/bin/python ] || fail "nothing is installed here; run \`tpu_vm.sh install\` first"
    if running; then fail "a command runs already; \`tpu_vm.sh stop\` ends it"; fi
    export JAX_PLATFORMS=tpu,cpu SEGEARTH_R2_RUNTIME=tpu PYTHONUNBUFFERED=1
    setsid nohup bash launch/keep_running.sh .venv/bin/python launch/runtime.py "$@" >> run.log 2>&1 < /dev/null &
    echo $! > run.pid
    ;;
  status)
    if running; then state=running; else state="not running"; fi
    echo "$(hostname): $state: $(tail -n 1 run.log 2> /dev/null || echo "no log")"
    ;;
  stop)
    if running; then kill -TERM "$(cat run.pid)"; fi
    while running; do sleep 1; done
    ;;
  *) fail "expected install, start, status or stop" ;;
esac
