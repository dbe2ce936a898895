"""`rl-nfm train`: begin a run from a preset, or go on with one."""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from agents.config import (
    Config,
    chosen_encoders,
    config_class,
    flags_of_encoder,
    make_config,
)
from agents.presets import preset_names, preset_path, read_preset
from agents.saving import zoo
from agents.training import train
from rl_nfm.encoders import encoder_names
from rl_nfm.support.configuration import plain_values
from rl_nfm.support.device import choose_device
from rl_nfm.support.flags import parse_flags
from rl_nfm.support.memory import keep_freed_memory
from rl_nfm.support.ranks import OtherRankError, Ranks, restarts

USAGE = """usage: rl-nfm train PRESET [options]
       rl-nfm train --resume RUN [--steps N]

PRESET is a name ({presets}), the path of a YAML file, or an exported agent such as zoo:NAME, whose
settings are meant; `rl-nfm train PRESET --help` shows every option with the preset's values. Every
count of steps is in agent steps (4 frames each).

Most used:
  --game GAME            ms_pacman, gym:ID, ...: rl-nfm games
  --encoder ENCODER      nature, resnet, nfm, rim, ...: rl-nfm encoders
  --steps N              agent steps in all
  --seed N               of everything that is random
  --out DIR              the run's folder (default: a new one under runs/)
  --device auto|cpu|cuda
  --init AGENT           begin with the weights of a run or of zoo:NAME, whose encoder must be the
                         same: train zoo:NAME --init zoo:NAME, or with other settings of yours
"""
EPILOG = """--out DIR: the run's folder (default: a new one under runs/); --resume RUN: go on.
Under torchrun each process trains its share, and the same command goes on with the run in --out.
Options of an encoder that is not chosen are refused. After a resume the games begin anew: emulator
states cannot be saved; weights, optimiser, replay, schedules and curves go on."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    argv = list(argv)
    out = _take(argv, "--out")
    run = _take(argv, "--resume")
    preset = argv.pop(0) if argv and not argv[0].startswith("-") else None
    if run is not None and (preset is not None or out is not None):
        raise ValueError("--resume: not allowed together with a preset or --out")
    if run is None and preset is None:
        text = USAGE.format(presets=", ".join(preset_names()))
        if "-h" in argv or "--help" in argv:
            print(text, end="")
            return 0
        names = ", ".join(preset_names())
        raise ValueError(
            f"train: a preset as the first word, or --resume RUN, is needed (presets: {names})"
        )
    ranks = Ranks.of_torchrun()
    try:
        if run is not None:
            folder = train.resume(Path(run), lambda old: _chosen(old, argv, f"--resume {run}"))
        else:
            assert preset is not None
            preset = str(zoo.locate(Path(preset)))
            config = _chosen(read_preset(preset), argv, preset)
            folder = train.train(config, out=None if out is None else Path(out))
    except train.Stop as stop:
        if ranks.first:
            quoted = shlex.quote(str(stop.folder))
            print(f"stopped by {stop} after a checkpoint; go on: rl-nfm train --resume {quoted}")
        if restarts():  # to torchrun any other code is a failure, after which it would begin again
            return 0
        return 128 + signal.Signals[str(stop)]
    except ValueError as error:
        if ranks.first or isinstance(error, OtherRankError):
            raise
        return 2  # rank 0 says the same
    if ranks.first:
        print(f"done: {folder}")
        quoted = shlex.quote(str(folder))
        print(f"next: rl-nfm evaluate {quoted}    curves: tensorboard --logdir {quoted}")
    return 0


def _take(argv: list[str], flag: str) -> str | None:
    """Remove `flag VALUE` or `flag=VALUE` and return the value."""
    for index, word in enumerate(argv):
        if word == flag:
            if index + 1 >= len(argv):
                raise ValueError(f"{flag}: needs a value")
            value = argv[index + 1]
            del argv[index : index + 2]
            return value
        if word.startswith(f"{flag}="):
            del argv[index]
            return word.split("=", 1)[1]
    return None


def _chosen(default: Config, argv: Sequence[str], prog: str) -> Config:
    """The config to run, for which the process, which is this command's own, is set up."""
    config = _flags(default, argv, prog)
    keep_freed_memory(choose_device(config.device))
    return config


def _flags(default: Config, argv: Sequence[str], prog: str) -> Config:
    """The config with the user's flags, none of which may be for an encoder not chosen."""
    if not argv:
        return default  # the parser takes a third of a second to say so
    description = EPILOG
    if not prog.startswith("--"):
        header = preset_path(prog).read_text(encoding="utf-8").splitlines()
        comment = [line.lstrip("# ") for line in header if line.startswith("#")]
        description = "\n".join([*comment, "", EPILOG])
    config = parse_flags(
        config_class(),
        argv,
        default=make_config(plain_values(default)),
        prog=f"rl-nfm train {prog}",
        description=description,
    )
    chosen = chosen_encoders(config)
    for name in encoder_names():
        typed = flags_of_encoder(name, argv)
        if typed and name not in chosen:
            raise ValueError(
                f"{typed[0]}: encoder {name!r} is not chosen (chosen: "
                f"{', '.join(chosen)}; add --encoder {name})"
            )
    return config


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
