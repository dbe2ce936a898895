#!/usr/bin/env bash
# The demo: trains a small NFM agent on Ms. Pacman, then evaluates it without a display.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
run="runs/demo-$(date +%Y%m%d-%H%M%S)"
rl-nfm train quickstart --out "$run"
rl-nfm evaluate "$run" --episodes 8 --json "$run/scores.json"
echo "curves: tensorboard --logdir $run    scores: $run/scores.json"
