#!/usr/bin/env bash
# Installs into .venv and runs the linter and all tests but those marked slow. Arguments
# go to pytest: bash scripts/test.sh -m slow, bash scripts/test.sh tests/model
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh" test

ruff check .
ruff format --check .
python -m pytest --numprocesses auto --dist loadfile "$@"
