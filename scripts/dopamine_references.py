"""Make `agents/reporting/dopamine.csv` from a checkout of google/dopamine.

`python scripts/dopamine_references.py DOPAMINE` reads `baselines/atari/data/GAME_CNN.json` and
`GAME_Impala.json`: five seeds of 200 iterations each. Only some iterations are used, and some seeds
lack the last one.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

from agents.reporting.references import AGENTS, ITERATIONS, NETWORKS, PATH
from envs import SUITES

_SEEDS = 5


def main(argv: list[str]) -> int:
    """Write the file."""
    if len(argv) != 1:
        print("usage: python scripts/dopamine_references.py DOPAMINE (a copy of its repository)")
        return 2
    data = Path(argv[0]) / "baselines/atari/data"
    with PATH.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["game", "agent", "network", "seed", *ITERATIONS])
        for game in SUITES["atari57"]:
            for network, suffix in NETWORKS.items():
                path = data / f"{game.replace('_', '')}_{suffix}.json"
                if not path.is_file():  # Dopamine has no data for Defender and Surround
                    continue
                rows = json.loads(path.read_text(encoding="utf-8"))
                values: dict[tuple[str, int], list[float]] = defaultdict(list)
                for row in rows:
                    values[row["Agent"], row["Iteration"]].append(row["Value"])
                for agent in AGENTS:
                    # The file does not number the seeds: they stand in one order per iteration.
                    columns = [values[agent, iteration] for iteration in ITERATIONS]
                    assert all(len(column) == _SEEDS for column in columns), (game, agent)
                    for seed, curve in enumerate(zip(*columns, strict=True)):
                        short = [f"{value:.5g}" for value in curve]
                        writer.writerow([game, agent, network, seed, *short])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
