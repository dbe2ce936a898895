"""`rl-nfm agents`: the trained agents that come with the package."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from agents.saving import checkpoint, zoo
from envs import random_and_human_score
from rl_nfm.support.configuration import nearest

HELP = """usage: rl-nfm agents [--json]

List the trained agents that come with the package: name, encoder, agent steps of training, mean
return with its 95 % interval over episodes, and the published scores of random play and of a human;
below it how many episodes were alike, where most were.
Use one as zoo:NAME: `rl-nfm evaluate zoo:NAME`, `agents.load("zoo:NAME")`, and `rl-nfm train
zoo:NAME --init zoo:NAME` to go on from its weights with its settings (or those of another preset
with the same encoder). `rl-nfm export` makes more.

  --json    print it as JSON
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    if "-h" in argv or "--help" in argv:
        print(HELP, end="")
        return 0
    for word in argv:
        if word != "--json":
            raise ValueError(nearest("option", word, ["--json", "--help"]))
    rows = [_described(name) for name in zoo.agent_names()]
    if argv:
        print(json.dumps(rows, indent=1))
        return 0
    width = max((len(row["name"]) for row in rows), default=4)
    print(f"{'name':{width}}  {'encoder':10} {'steps':>11}  {'mean return':26} random / human")
    for row in rows:
        low, high = row["mean_interval"]
        mean = f"{row['mean']:,.2f} [{low:,.2f}, {high:,.2f}]"
        published = [row["random"], row["human"]]
        known = " / ".join("-" if score is None else f"{score:,.1f}" for score in published)
        print(f"{row['name']:{width}}  {row['encoder']:10} {row['steps']:>11,}  {mean:26} {known}")
        if row["repeated"] is not None:
            count, score = row["repeated"]
            print(f"{'':{width}}  {count} of {row['episodes']} episodes returned exactly {score:g}")
    return 0


def _described(name: str) -> dict[str, Any]:
    folder = zoo.ZOO / name
    found = checkpoint.open_checkpoint(folder)
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    random, human = random_and_human_score(scores["game"]) or (None, None)
    return {
        "name": name,
        "game": scores["game"],
        "encoder": found.config.encoder,
        "steps": found.steps,
        **{key: scores[key] for key in ("episodes", "mean", "mean_interval", "hns", "repeated")},
        "random": random,
        "human": human,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
