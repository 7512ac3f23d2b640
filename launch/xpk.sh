#!/usr/bin/env bash
# Starts `segearth-r2 VERB ...` on TPU slices of a GKE cluster through xpk (which is installed apart). See docs/launch/gke.md.
#
#   export CLUSTER=my-cluster WORKLOAD=segearth TPU_TYPE=v5litepod-16 IMAGE=us-docker.pkg.dev/my-project/images/segearth-r2
#   bash launch/xpk.sh train --config configs/segearth_r2_lasers.py --workdir gs://BUCKET/run ...
#
#   PROJECT, ZONE    of the cluster (default: what gcloud is configured with)
#   SLICES           how many slices (default: 1)
#   DRY_RUN=1        prints what xpk would do
set -euo pipefail

fail() { echo "xpk.sh: error: $1" >&2; exit 2; }
missing=()
for name in CLUSTER WORKLOAD TPU_TYPE IMAGE; do [ -n "${!name:-}" ] || missing+=("$name"); done
[ ${#missing[@]} = 0 ] || fail "set ${missing[*]} in the environment, e.g. export ${missing[0]}=..."
[ $# -gt 0 ] || fail "expected what segearth-r2 is to do, e.g. train --config FILE --workdir gs://BUCKET/run"

options=()
if [ -n "${PROJECT:-}" ]; then options+=(--project "$PROJECT"); fi
if [ -n "${ZONE:-}" ]; then options+=(--zone "$ZONE"); fi
if [ "${DRY_RUN:-0}" = 1 ]; then options+=(--dry-run); fi
# Restarts: after a preemption (75) and after a crash of Python (1); xpk adds 42 and 127 to 255, which is what signals leave. Wrong
# input (2) ends the workload. With `exec` the SIGTERM that xpk passes on reaches Python instead of a shell.
exec xpk workload create --cluster "$CLUSTER" --workload "$WORKLOAD" --tpu-type "$TPU_TYPE" --num-slices "${SLICES:-1}" \
  --docker-image "$IMAGE" ${options[@]+"${options[@]}"} \
  --max-restarts 100 --restart-on-exit-codes 1,75 --termination-grace-period-seconds 300 \
  --env JAX_PLATFORMS=tpu,cpu --env SEGEARTH_R2_RUNTIME=tpu \
  --command "exec python launch/runtime.py$(printf ' %q' "$@")"
