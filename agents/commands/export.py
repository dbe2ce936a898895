"""`rl-nfm export`: a trained agent as a small folder that can be handed on."""

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from annotated_types import Ge, Gt, Le

from agents.commands.evaluate import score_content, score_text
from agents.config import to_plain
from agents.learning.network import QNetwork
from agents.playing.evaluate import NUM_ENVS, play
from agents.presets import EXPORTED
from agents.reporting.card import model_card
from agents.saving import checkpoint
from agents.saving.checkpoint import Checkpoint
from agents.saving.run_folder import RunFolder, read_metrics
from rl_nfm.support import storage
from rl_nfm.support.device import choose_device
from rl_nfm.support.flags import parse_flags

DESCRIPTION = """Play episodes with a trained agent, and write it with its scores into a folder to
hand on: weights, config, protocol, scores with intervals, training curve and a model card. Neither
replay nor optimiser: a run cannot go on from there, but another can begin (train ... --init)."""
CURVE: tuple[str, ...] = (
    "steps",
    "updates",
    "episodes",
    "mean_return",
    "eval_return_mean",
    "eval_return_median",
)
"""Columns of `curve.csv`; `mean_return` is that of the training episodes that ended since the line
before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to export."""

    path: tyro.conf.Positional[Path]
    """A run's folder or a single checkpoint."""

    out: Path
    """Folder to write, new or empty; its name becomes the agent's."""

    episodes: Annotated[int, Gt(0)] = 100
    """Episodes whose scores go along."""

    epsilon: Annotated[float, Ge(0), Le(1)] | None = None
    """Probability of a random action in them; none: the run's own, `run.eval_epsilon`."""

    seed: Annotated[int, Ge(0), Le(2**31 - 1)] = 1000
    """Of their games and actions; another one than in training."""

    which: Literal["last", "best"] = "last"
    """Which checkpoint of a run: the last one, or that of the best evaluation in training."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; auto: cuda where there is one."""

    num_envs: Annotated[int, Gt(0), Le(1024)] = NUM_ENVS
    """Games played side by side, at most one per episode."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse_flags(Options, argv, prog="rl-nfm export", description=DESCRIPTION)
    options = dataclasses.replace(options, out=options.out.absolute())  # a name, also for "."
    RunFolder.check_free(options.out)
    found = checkpoint.open_checkpoint(checkpoint.find(options.path, options.which))
    network = checkpoint.load_network(found, choose_device(options.device)).eval()
    curve = _curve(found)
    scores = play(
        network,
        found.config,
        episodes=options.episodes,
        epsilon=found.config.run.eval_epsilon if options.epsilon is None else options.epsilon,
        seed=options.seed,
        num_envs=options.num_envs,
        progress=True,
    )
    content = score_content(scores, found)
    _write(options.out, found, network, content, curve)
    print(score_text(content))
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"agent: {options.out} ({size / 1e6:.2f} MB); its card: {options.out / 'README.md'}")
    return 0


def _write(
    out: Path, found: Checkpoint, network: QNetwork, scores: dict[str, Any], curve: str | None
) -> None:
    """Write the folder, completely or not at all."""
    config = to_plain(found.config)
    del scores["checkpoint"], scores["config"]  # a path of this machine, and what stands beside
    meta = {
        "config": config,
        "counters": {name: found.meta.counters[name] for name in ("steps", "updates")},
        "obs_shape": list(found.meta.obs_shape),
        "num_actions": found.meta.num_actions,
        "torch": found.meta.torch,
        "which": found.which,
    }
    agent = {
        "config": config,
        "obs_shape": found.meta.obs_shape,
        "updates": found.meta.counters["updates"],
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    with storage.Draft(out) as draft:
        draft.write("network", network.state_dict())
        draft.write_text(EXPORTED, yaml.safe_dump(config, sort_keys=False))
        draft.write_text("scores.json", json.dumps(scores, indent=1, allow_nan=False) + "\n")
        draft.write_text("README.md", model_card(out.resolve().name, scores, agent))
        if curve is not None:
            draft.write_text("curve.csv", curve)
        draft.commit(kind=checkpoint.KIND, meta=meta)


def _curve(found: Checkpoint) -> str | None:
    """The run's learning curve up to the checkpoint, as CSV; None without the run's folder.

    Raises:
        ValueError: a line of it holds other than numbers.
    """
    metrics = found.path.parent.parent / "metrics.jsonl"
    if found.path.parent.name != "checkpoints" or not metrics.is_file():
        return None
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for line in read_metrics(metrics):
        if line["steps"] <= found.steps:
            returns = line.get("episode_returns") or []
            try:
                mean = sum(returns) / len(returns) if returns else None
            except TypeError:
                where = f"{metrics}: the line of step {line['steps']}"
                raise ValueError(f"{where} holds other than numbers") from None
            writer.writerow({**line, "mean_return": mean})
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
