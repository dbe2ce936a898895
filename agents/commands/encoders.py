"""`rl-nfm encoders`: the registry, one line each."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rl_nfm.encoders import encoder_entries, make_encoder
from rl_nfm.encoders.cost import encoder_macs
from rl_nfm.encoders.registry import EncoderEntry
from rl_nfm.support.configuration import nearest
from rl_nfm.support.errors import named_line

HELP = """usage: rl-nfm encoders [--json]

List the encoders that --encoder takes: name, parameters, multiply-accumulates (MACs) for one
observation of 4 frames of 84x84, size of the features, and what it is; with its default options.
An installed package adds its own by the entry point group `rl_nfm.encoders`.

  --json    print it as JSON
"""
OBS_SHAPE, NUM_ACTIONS = (4, 84, 84), 18


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    if "-h" in argv or "--help" in argv:
        print(HELP, end="")
        return 0
    for word in argv:
        if word != "--json":
            raise ValueError(nearest("option", word, ["--json", "--help"]))
    rows = [row for entry in encoder_entries() if (row := _described(entry)) is not None]
    if argv:
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(row["name"]) for row in rows)
    print(f"{'name':{width}}  {'parameters':>10}  {'MACs':>13}  {'features':>8}  summary")
    for row in rows:
        print(
            f"{row['name']:{width}}  {row['parameters']:>10,}  {row['macs']:>13,}  "
            f"{row['feature_dim']:>8,}  {row['summary']}"
        )
    return 0


def _described(entry: EncoderEntry) -> dict[str, Any] | None:
    """A row of the table; None, and a line on stderr, for one that cannot be built."""
    try:
        return _describe(entry.name, entry.summary)
    except Exception as error:  # whatever the code of another package may raise
        print(
            f"rl-nfm: encoder {entry.name} ({entry.build.__module__}) cannot be built: "
            f"{named_line(error.__cause__ or error)}",
            file=sys.stderr,
        )
        return None


def _describe(name: str, summary: str) -> dict[str, Any]:
    encoder = make_encoder(name, obs_shape=OBS_SHAPE, num_actions=NUM_ACTIONS).eval()
    return {
        "name": name,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "macs": encoder_macs(encoder, OBS_SHAPE),
        "feature_dim": encoder.feature_dim,
        "recurrent": encoder.recurrent,
        "summary": summary,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
