"""Make `agents/reporting/atari_100k.csv` from checkouts of mila-iqia/spr and eloialonso/iris.

`python scripts/atari_100k_references.py SPR IRIS` reads the table `atari_der_scores` in
`src/rlpyt_utils.py` of the first, and `results/data/DrQ(eps).json` and `SPR.json` of the second
(the final scores of 100 runs on each game).
"""

import ast
import csv
import json
import statistics
import sys
from pathlib import Path

from agents.reporting.references import PATH_100K
from envs import SUITES

_RUNS = {"DrQ (epsilon)": "DrQ(eps)", "SPR": "SPR"}
"""Our name of an agent to the name of its file."""


def main(argv: list[str]) -> int:
    """Write the file."""
    if len(argv) != 2:
        print("usage: python scripts/atari_100k_references.py SPR IRIS (copies of repositories)")
        return 2
    spr, iris = map(Path, argv)
    der = _keywords(spr / "src/rlpyt_utils.py", "atari_der_scores")
    with PATH_100K.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["game", "agent", "runs", "mean"])
        for game in SUITES["atari26"]:
            writer.writerow([game, "DER", "", f"{der[game]:.1f}"])
            for agent, name in _RUNS.items():
                path = iris / "results/data" / f"{name}.json"
                games = json.loads(path.read_text(encoding="utf-8"))
                scores = games["".join(word.capitalize() for word in game.split("_"))]
                writer.writerow([game, agent, len(scores), f"{statistics.mean(scores):.1f}"])
    return 0


def _keywords(path: Path, name: str) -> dict[str, float]:
    """The numbers of `name = dict(key=number, ...)` in a file, which is not executed."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=ast.Call(keywords=keywords)):
                if found == name:
                    return {str(k.arg): float(ast.literal_eval(k.value)) for k in keywords}
    raise ValueError(f"{path}: no {name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
