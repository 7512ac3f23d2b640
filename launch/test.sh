#!/usr/bin/env bash
# Installs what the tests need and runs them. Arguments go to pytest: `bash launch/test.sh -m slow`, `bash launch/test.sh tests/models`.
# Another interpreter: SEGEARTH_R2_PYTHON=python3.12 bash launch/test.sh (tests that need torch skip there, saying so).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
install_environment requirements-dev.txt
use_cpu_by_default
# The pages are tested in a real browser, where one is installed or can be; elsewhere those tests skip, saying so.
if ! command -v chromedriver > /dev/null && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  echo "installing chromium for the browser tests"
  { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium chromium-driver; } > /dev/null 2>&1 ||
    echo "chromium could not be installed: the browser tests will skip"
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# Two at a time, a file in one of them: most tests keep one core busy, with XLA's compiler.
exec "$PYTHON" -m pytest -m "not slow" -n 2 --dist loadfile --durations=10 "$@"
