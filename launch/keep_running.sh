#!/usr/bin/env bash
# Runs a command, and again when it was preempted (exit status 75) or crashed, until it is done (0) or finds its input wrong (2):
#
#   bash launch/keep_running.sh python launch/runtime.py train --config FILE --workdir DIR
#
# SIGTERM and Ctrl-C go to the command, which is then not started again. Crashes in a row, each within SEGEARTH_R2_CRASH_SECONDS of
# its start (default: 600), are given up after SEGEARTH_R2_CRASHES (default: 5).
set -u
[ $# -gt 0 ] || { echo "keep_running.sh: error: expected a command" >&2; exit 2; }
stopping='' crashes=0
trap 'stopping=1; kill -TERM "$child" 2> /dev/null' TERM INT

while :; do
  started=$SECONDS
  "$@" &
  child=$!
  # A trapped signal ends `wait`, not the command.
  while wait "$child"; status=$?; kill -0 "$child" 2> /dev/null; do :; done
  case $status in 0 | 2) exit $status ;; esac
  if [ -n "$stopping" ]; then exit $status; fi
  if [ $status = 75 ] || [ $((SECONDS - started)) -ge "${SEGEARTH_R2_CRASH_SECONDS:-600}" ]; then crashes=0; else crashes=$((crashes + 1)); fi
  if [ $crashes -ge "${SEGEARTH_R2_CRASHES:-5}" ]; then
    echo "keep_running.sh: given up after $crashes crashes in a row, the last with exit status $status" >&2
    exit $status
  fi
  echo "keep_running.sh: exit status $status, starting again" >&2
  sleep "${SEGEARTH_R2_PAUSE:-10}"
  if [ -n "$stopping" ]; then exit $status; fi
done
