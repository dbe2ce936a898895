"""`rl-nfm evaluate`: play episodes with a trained agent, or at random; scores and a video."""

import contextlib
import dataclasses
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from annotated_types import Ge, Gt, Le

from agents.config import Config, to_plain
from agents.learning.network import QNetwork
from agents.playing.attention import attention_view
from agents.playing.attention_use import use_text
from agents.playing.evaluate import NUM_ENVS, play
from agents.playing.scores import Scores
from agents.playing.video import record_first_episode
from agents.presets import preset_names, read_preset
from agents.reporting.statistics import bootstrap_interval
from agents.saving import checkpoint
from agents.saving.checkpoint import Checkpoint
from agents.saving.run_folder import RunFolder
from envs import resolve_game, step_spec
from rl_nfm.nfm import set_random_attention
from rl_nfm.support.device import choose_device
from rl_nfm.support.flags import parse_flags
from rl_nfm.support.memory import keep_freed_memory
from rl_nfm.support.output_files import check_file, write_json

DESCRIPTION = """Play episodes with a trained agent and print mean, median and human-normalised
score with the protocol they were played under. Needs no display and no training state. Of the
episodes, the first N started count, so that short ones are not favoured."""
RANDOM = "random"
"""Stands for the encoder where there is none."""


_Switch = tyro.conf.UseCounterAction[
    Annotated[int, tyro.conf.arg(help_behavior_hint="(default: off)")]
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to play."""

    path: tyro.conf.Positional[Path]
    """A run's folder, a single checkpoint, what `rl-nfm export` wrote, or zoo:NAME of `rl-nfm
    agents` (with --random also a preset's name)."""

    game: str | None = None
    """Play this game instead of the one trained on, under the same options: a larger MiniGrid, say.
    Its observations and actions must be of the same shapes."""

    episodes: Annotated[int, Gt(0)] = 100
    """Episodes to count."""

    json: Path | None = None
    """Write returns, scores and protocol to this file; one that is there is replaced."""

    video: Path | None = None
    """Record the first episode to this .mp4 file: the game, and what the agent sees."""

    attention: Path | None = None
    """Record the first episode to this .mp4 file with what the encoder attends to below the game
    (NFM: the most read layer of each position; RIMs: which are active), and a still beside it. For
    NFM also print, for each reader: its gain, the size of what it adds over that of the layer's
    output, the entropy of attention (1: even), and where it goes."""

    random_attention: _Switch = 0
    """NFM: noise instead of attention scores, the paper's ablation, to see how much they matter."""

    epsilon: Annotated[float, Ge(0), Le(1)] | None = None
    """Probability of a random action; none: the run's own, `run.eval_epsilon`."""

    fractions: Literal["drawn", "fixed"] = "drawn"
    """Quantile fractions: drawn anew at every step, as in training, or the same at every step."""

    seed: Annotated[int, Ge(0), Le(2**31 - 1)] = 1000
    """Of games and actions; another one than in training."""

    which: Literal["last", "best"] = "last"
    """Which checkpoint of a run: the last one, or that of the best evaluation in training."""

    random: _Switch = 0
    """Choose every action at random, for comparison."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; auto: cuda where there is one."""

    num_envs: Annotated[int, Gt(0), Le(1024)] = NUM_ENVS
    """Games played side by side, at most one per episode."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse_flags(Options, argv, prog="rl-nfm evaluate", description=DESCRIPTION)
    _check_options(options)
    device = choose_device(options.device)
    keep_freed_memory(device)
    found = None if options.random else _open(options)
    config = _random_config(options.path) if found is None else found.config
    if options.game is not None:
        config = _with_game(config, options.game, found)
    network = None if found is None else checkpoint.load_network(found, device)
    if network is not None and options.random_attention:
        randomise(network, config.encoder)
    with contextlib.ExitStack() as stack:
        scores, use = _play(options, config, network, stack)
        content = score_content(scores, found)
        if options.random_attention:
            content["random_attention"] = True
        if use:
            content["attention"] = use
        if options.json is not None:
            write_json(options.json, content)
        print(score_text(content))
    # Last, where they are found after much text; and only now are the videos whole.
    for name, path in _written(options).items():
        print(f"{name + ':':24}{path}")
    return 0


def _check_options(options: Options) -> None:
    if options.json is not None:
        check_file("json", options.json)
    for name in ("video", "attention"):
        if (path := getattr(options, name)) is not None:
            check_file(name, path, ".mp4")
    files = [path.resolve() for path in _written(options).values()]
    for path in files:
        if files.count(path) > 1:
            raise ValueError(
                f"json, video, attention: {path} would be written twice (a picture is written "
                "beside the video of attention)"
            )
    if options.attention is not None:
        check_file("attention", options.attention.with_suffix(".png"))
    for name in ("attention", "random_attention", "epsilon", "fractions", "which"):
        if options.random and getattr(options, name) != Options.__dataclass_fields__[name].default:
            raise ValueError(f"{name}: not allowed with --random, which has no encoder")


def _play(
    options: Options, config: Config, network: QNetwork | None, stack: contextlib.ExitStack
) -> tuple[Scores, list[dict[str, Any]]]:
    """Scores, and rows of `AttentionUse` where attention is recorded; videos end with `stack`."""
    recorders, view = [], None
    if options.video is not None:
        recorders.append(record_first_episode(options.video, config, seed=options.seed))
    if options.attention is not None:
        assert network is not None
        view = stack.enter_context(attention_view(network))
        recorders.append(
            record_first_episode(options.attention, config, seed=options.seed, attention=view)
        )
    listeners = [stack.enter_context(recorder) for recorder in recorders]
    scores = play(
        None if network is None else network.eval(),
        config,
        episodes=options.episodes,
        epsilon=config.run.eval_epsilon if options.epsilon is None else options.epsilon,
        seed=options.seed,
        num_envs=options.num_envs,
        fixed_fractions=options.fractions == "fixed",
        progress=True,
        # A captured graph would not run the hooks of listeners, and would repeat its noise.
        capture=not (listeners or options.random_attention),
        on_step=lambda step: [listener(step) for listener in listeners],
    )
    return scores, [] if view is None else view.use.rows()


def _written(options: Options) -> dict[str, Path]:
    """The path of each file that the options ask for."""
    files = {"scores": options.json, "video": options.video, "attention": options.attention}
    if options.attention is not None:
        files["attention, one picture"] = options.attention.with_suffix(".png")
    return {name: path for name, path in files.items() if path is not None}


def randomise(network: QNetwork, name: str) -> None:
    """Replace the attention scores of a network, whose encoder has this name, by noise.

    Raises:
        ValueError: the encoder has no attention.
    """
    if "attention" not in network.encoder.shows:
        raise ValueError(
            f"random_attention: encoder {name!r} has no attention (allowed: nfm, or a recurrent "
            "encoder on the trunk nfm)"
        )
    set_random_attention(network, True)


def _open(options: Options) -> Checkpoint:
    return checkpoint.open_checkpoint(checkpoint.find(options.path, options.which))


def _with_game(config: Config, game: str, found: Checkpoint | None) -> Config:
    """The config with another game, which must look to the agent like the one trained on.

    Raises:
        ValueError: an unknown game, or observations of another shape.
    """
    config = dataclasses.replace(config, game=resolve_game(game))
    shape = step_spec(config.game, config.protocol).obs_shape
    if found is not None and shape != found.meta.obs_shape:
        raise ValueError(
            f"game: {game!r} is not allowed: its observations are of shape {shape}, those that the "
            f"agent was trained on ({found.config.game}) {found.meta.obs_shape}"
        )
    return config


def _random_config(path: Path) -> Config:
    """The config of a run, of a checkpoint or of a preset: it names the game and the protocol."""
    if not path.exists() and str(path) in preset_names():
        return read_preset(str(path))
    folder = RunFolder(path)
    if folder.config_path.is_file():
        return folder.config()
    return checkpoint.open_checkpoint(checkpoint.find(path)).config


def score_content(scores: Scores, found: Checkpoint | None) -> dict[str, Any]:
    """Scores with intervals, and facts about the training where there is a checkpoint."""
    trained: dict[str, Any] = {"encoder": RANDOM, "checkpoint_steps": None}
    if found is not None:
        trained = {
            "encoder": found.config.encoder,
            "checkpoint_steps": found.steps,
            "checkpoint": str(found.path),
            "which": found.which,
            "train_seed": found.config.seed,
            "trained_on": resolve_game(found.config.game),
            "config": to_plain(found.config),
        }
    packages = ("torch", "numpy", "gymnasium", "ale-py")
    versions = {"python": platform.python_version(), **{p: version(p) for p in packages}}
    return {**scores.to_plain(), **_spread(scores.returns), **trained, "versions": versions}


def _spread(returns: Sequence[float]) -> dict[str, Any]:
    """Sample standard deviation, and the 95 % bootstrap interval of the mean; None for one."""
    if len(returns) < 2:
        return {"standard_deviation": None, "mean_interval": None}
    values = np.array(returns)
    low, high = bootstrap_interval(lambda strata: strata[0].mean(-1), [values], resamples=10_000)
    return {
        "standard_deviation": float(values.std(ddof=1)),
        "mean_interval": [float(low), float(high)],
    }


def _spread_text(content: dict[str, Any]) -> str:
    if content["mean_interval"] is None:
        return ""
    low, high = content["mean_interval"]
    return (
        f", 95 % interval {low:.2f} to {high:.2f} (over episodes), "
        f"standard deviation {content['standard_deviation']:.2f}"
    )


def score_text(content: dict[str, Any]) -> str:
    """The text that is printed for `score_content`."""
    hns = content["hns"]
    steps = content["checkpoint_steps"]
    who = content["encoder"] if steps is None else f"{content['encoder']} after {steps} steps"
    if content.get("random_attention"):
        who += " with random attention"
    if content.get("trained_on", content["game"]) != content["game"]:
        who += f" of {content['trained_on']}"
    rows = {
        "game": f"{content['game']}, {who}",
        "episodes": content["episodes"],
        "mean return": f"{content['mean']:.2f}{_spread_text(content)}",
        "median return": f"{content['median']:.2f}",
        "human-normalised score": "none (no human score is published)"
        if hns is None
        else f"{hns:.4f}",
    }
    if content["repeated"] is not None and content["encoder"] != RANDOM:
        count, score = content["repeated"]
        rows["note"] = (
            f"{count} of {content['episodes']} episodes returned exactly {score:g}: it plays all "
            "alike (or is stuck), and more episodes say little more"
        )
    lines = [f"{name:24}{value}" for name, value in rows.items()]
    if "attention" in content:
        lines.append(use_text(content["attention"]))
    lines += ["protocol:", *(f"  {name:28}{value}" for name, value in content["protocol"].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
