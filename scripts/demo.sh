#!/usr/bin/env bash
# The demo: trains a small agent on Road Runner, plays it against random play without a display, and
# pictures what an NFM agent attends to. No step has a time limit, so a busy machine only takes longer.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
run="runs/demo-$(date +%Y%m%d-%H%M%S)"
rl-nfm train demo --out "$run"
rl-nfm evaluate demo --random --episodes 16 --num-envs 16 --json "$run/random.json"
rl-nfm evaluate "$run" --episodes 16 --num-envs 16 --epsilon 0.05 --json "$run/scores.json" --video "$run/play.mp4"
# A tiny NFM agent after 300 steps: it cannot play, but its attention can be seen.
rl-nfm train debug --game road_runner --encoder nfm --env.max-num-frames-per-episode 1200 --out "$run-nfm"
rl-nfm evaluate "$run-nfm" --episodes 1 --attention "$run/attention.mp4"
python - "$run" <<'END'
import json, sys
run = sys.argv[1]
for name, file in (("random play", "random"), ("the trained agent", "scores")):
    with open(f"{run}/{file}.json") as handle:
        found = json.load(handle)
    low, high = found["mean_interval"]
    print(f"{name + ':':24}{found['mean']:.0f} points an episode, 95 % interval {low:.0f} to {high:.0f}")
END
cat <<END
In so short a time it learns at most one thing, to hold the joystick to the left, where the points
lie: 8 of 10 seeds do (docs/results.md, which also shows what longer runs learn).
play, the trained agent: $run/play.mp4
attention of the NFM:    $run/attention.png, $run/attention.mp4
curves:                  tensorboard --logdir $run
END
