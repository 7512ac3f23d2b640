#!/usr/bin/env bash
# A Cloud TPU slice from the creation to the deletion, on whatever number of hosts. See docs/launch/tpu_vm.md.
#
#   export PROJECT=my-project ZONE=us-west4-a TPU_NAME=segearth ACCELERATOR_TYPE=v5litepod-16 RUNTIME_VERSION=v2-alpha-tpuv5-lite
#   bash launch/tpu_vm.sh create           asks for the slice (SPOT=1: a spot one); it is there when `status` says ACTIVE
#   bash launch/tpu_vm.sh install          copies these files to every worker and installs what they need
#   bash launch/tpu_vm.sh run VERB ...     starts `segearth-r2 VERB ...` on every worker, in the background
#   bash launch/tpu_vm.sh status           the state of the slice, and a line of each worker
#   bash launch/tpu_vm.sh log [WORKER]     follows the log of a worker (0)
#   bash launch/tpu_vm.sh stop             every worker saves and leaves
#   bash launch/tpu_vm.sh delete           gives the slice back
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "tpu_vm.sh: error: $1" >&2; exit 2; }
need() {
  local name missing=()
  for name in "$@"; do [ -n "${!name:-}" ] || missing+=("$name"); done
  [ ${#missing[@]} = 0 ] || fail "set ${missing[*]} in the environment, e.g. export $1=..."
}

verb="${1:-}"
[ $# = 0 ] || shift
case "$verb" in
  create) need PROJECT ZONE TPU_NAME ACCELERATOR_TYPE RUNTIME_VERSION ;;
  install | run | status | log | stop | delete) need PROJECT ZONE TPU_NAME ;;
  *) fail "expected create, install, run, status, log, stop or delete" ;;
esac
where=(--project "$PROJECT" --zone "$ZONE")
# TPU_SSH: more options of `tpu-vm ssh` and `scp`, e.g. "--tunnel-through-iap".
read -r -a ssh_options <<< "${TPU_SSH:-}"

on_worker() {
  local worker="$1" command="$2"
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" ${ssh_options[@]+"${ssh_options[@]}"} --worker "$worker" --command "$command"
}

case "$verb" in
  create)
    spot=()
    if [ "${SPOT:-0}" = 1 ]; then spot=(--spot); fi
    gcloud compute tpus queued-resources create "$TPU_NAME" --node-id "$TPU_NAME" "${where[@]}" \
      --accelerator-type "$ACCELERATOR_TYPE" --runtime-version "$RUNTIME_VERSION" ${spot[@]+"${spot[@]}"}
    ;;
  install)
    files="$(mktemp -d)"
    trap 'rm -rf "$files"' EXIT
    # The files of the working tree as they are, without what git ignores.
    git ls-files -z --cached --others --exclude-standard --deduplicate |
      while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done |
      tar --null -czf "$files/segearth-r2.tar.gz" --files-from -
    gcloud compute tpus tpu-vm scp "$files/segearth-r2.tar.gz" "$TPU_NAME:" "${where[@]}" ${ssh_options[@]+"${ssh_options[@]}"} --worker all
    on_worker all "mkdir -p segearth-r2 && tar -xzf segearth-r2.tar.gz -C segearth-r2 && bash segearth-r2/launch/tpu_worker.sh install"
    ;;
  run)
    [ $# -gt 0 ] || fail "run: expected what segearth-r2 is to do, e.g. run train --config FILE --workdir gs://BUCKET/run"
    on_worker all "bash segearth-r2/launch/tpu_worker.sh start$(printf ' %q' "$@")"
    ;;
  status)
    gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" --format "value(state.state)"
    on_worker all "bash segearth-r2/launch/tpu_worker.sh status"
    ;;
  log) on_worker "${1:-0}" "tail -n 100 -F segearth-r2/run.log" ;;
  stop) on_worker all "bash segearth-r2/launch/tpu_worker.sh stop" ;;
  delete) gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet ;;
esac
