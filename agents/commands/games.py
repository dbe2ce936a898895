"""`rl-nfm games`: every game, its suites, and the scores of random play and of a human."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from envs import SUITES, game_names, random_and_human_score
from rl_nfm.support.configuration import nearest

HELP = """usage: rl-nfm games [SUITE] [--json]

List the games that --game takes: name, mean return of random play and of a human tester (where
published: dqn_zoo's table), and the suites that --games of `rl-nfm sweep` takes.

  --json    print it as JSON
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    if "-h" in argv or "--help" in argv:
        print(HELP, end="")
        return 0
    words = [word for word in argv if word != "--json"]
    for word in words:
        if word.startswith("-"):
            raise ValueError(nearest("option", word, ["--json", "--help"]))
        if word not in SUITES:
            raise ValueError(nearest("suite", word, list(SUITES)))
    chosen = {game for word in words or SUITES for game in SUITES[word]}
    games = [game for game in game_names() if game in chosen or not words]
    rows = [_describe(game) for game in games]
    if "--json" in argv:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{'game':20} {'random':>10} {'human':>10}  suites")
    for row in rows:
        scores = [f"{row[name]:,.1f}" if row["human"] is not None else "-" for name in _SCORES]
        print(f"{row['game']:20} {scores[0]:>10} {scores[1]:>10}  {', '.join(row['suites'])}")
    print(f"{len(rows)} games; suites: {', '.join(f'{k} ({len(v)})' for k, v in SUITES.items())}")
    return 0


_SCORES = ("random", "human")


def _describe(game: str) -> dict[str, Any]:
    scores = random_and_human_score(game) or (None, None)
    return {
        "game": game,
        **dict(zip(_SCORES, scores, strict=True)),
        "suites": [name for name, games in SUITES.items() if game in games],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
