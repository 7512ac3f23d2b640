#!/usr/bin/env bash
# Installs what the tests need and runs them. Arguments go to pytest: `bash launch/test.sh -m slow`, `bash launch/test.sh tests/models`.
# Another interpreter: SEGEARTH_R2_PYTHON=python3.12 bash launch/test.sh (tests that need torch skip there, saying so).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
install_environment requirements-dev.txt
use_cpu_by_default
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest -m "not slow" --durations=10 "$@"
