#!/usr/bin/env bash
# The one command that says yes or no: format, lint, spelling, types, tests (which include the direction of imports).
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
ruff format --check .
ruff check .
codespell rl_nfm agents envs configs scripts docs ./*.md  # tests misspell on purpose
basedpyright --warnings
# one thread for each of two workers
OMP_NUM_THREADS=1 pytest -n 2 -m "not slow and not gpu" "$@"
