#!/usr/bin/env bash
# The demo: trains a small agent on Road Runner, plays it against random play without a display, and
# pictures what an NFM agent attends to.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
run="runs/demo-$(date +%Y%m%d-%H%M%S)"
rl-nfm train demo --out "$run"
# A tiny NFM agent after 300 steps: it cannot play, but its attention can be seen.
rl-nfm train debug --game road_runner --encoder nfm --env.max-num-frames-per-episode 1200 --out "$run-nfm"
rl-nfm evaluate "$run-nfm" --episodes 1 --attention "$run/attention.mp4"
rl-nfm evaluate demo --random --episodes 16 --num-envs 16 --json "$run/random.json"
rl-nfm evaluate "$run" --episodes 16 --num-envs 16 --epsilon 0.05 --json "$run/scores.json" --video "$run/play.mp4"
echo "random play:            $run/random.json"
echo "attention of the NFM:   $run/attention.png"
echo "curves:                 tensorboard --logdir $run"
