#!/usr/bin/env bash
# The demo: plays the NFM agent that comes with the package on Ms. Pacman, and an agent that it trains on
# Frostbite, each beside random play, without a display. No step has a time limit, so a busy machine only
# takes longer.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
out="runs/demo-$(date +%Y%m%d-%H%M%S)"
run="$out/frostbite"
mkdir -p "$out"
export OMP_NUM_THREADS=1  # two things at once, a core each
play() { # NAME AGENT [OPTIONS]
  rl-nfm evaluate "$2" --episodes 16 --num-envs 16 --json "$out/$1.json" "${@:3}"
}
box() { # an agent that comes with the package
  play ms_pacman-nfm zoo:ms_pacman-nfm --epsilon 0.05
  play ms_pacman-random zoo:ms_pacman-nfm --random
  rl-nfm evaluate zoo:ms_pacman-nfm --episodes 1 --epsilon 0.05 --video "$out/ms_pacman.mp4" \
    --attention "$out/attention.mp4"
}
echo "The NFM agent plays while another one is trained; its protocol and scores: $out/ms_pacman.txt"
box > "$out/ms_pacman.txt" 2>&1 &
rl-nfm train demo --env.num-threads 1 --out "$run"
play frostbite-trained "$run" --epsilon 0.05 --video "$out/play.mp4"
play frostbite-random demo --random
wait $! || { cat "$out/ms_pacman.txt"; exit 1; }
python - "$out" <<'END'
import json, sys
rows = {
    "Frostbite, trained just now": "frostbite-trained",
    "Frostbite, random play": "frostbite-random",
    "Ms. Pacman, the NFM agent in the box": "ms_pacman-nfm",
    "Ms. Pacman, random play": "ms_pacman-random",
}
print(f"\n{'points an episode':38}{'mean':>6}  95 % interval over 16 episodes")
for name, file in rows.items():
    with open(f"{sys.argv[1]}/{file}.json") as handle:
        found = json.load(handle)
    low, high = found["mean_interval"]
    print(f"{name:38}{found['mean']:6.0f}  {low:.0f} to {high:.0f}")
END
cat <<END

In its two minutes the small agent learns to hop from floe to floe, which gives points, and no more
than that (docs/results.md says how often, and what longer runs learn).
play of the small agent:    $out/play.mp4
play of the NFM agent:      $out/ms_pacman.mp4
what it attends to:         $out/attention.png, $out/attention.mp4
curves:                     tensorboard --logdir $run
END
