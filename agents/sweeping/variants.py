"""Encoders of a sweep: registered names, and baselines made as large as another encoder.

A matched baseline has the reference's number of parameters, or of multiply-accumulates (MACs), at
the options that the sweep's preset gives the reference. Encoders are compared without the head:
its first layer reads their features, and so grows with a baseline's width. `describe` tells both.
"""

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from agents.config import Config, make_config
from agents.reporting.sizes import build_encoder, obs_shape
from rl_nfm.backbones.matching import count_parameters, matching_width
from rl_nfm.encoders import encoder_names
from rl_nfm.encoders.cost import encoder_macs
from rl_nfm.support.configuration import nearest, plain_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """Which size of a baseline is matched to its reference."""

    encoder: str
    """The baseline."""
    reference: str
    """Encoder whose size it takes, and whose options, as far as the baseline has them."""
    option: str
    """The baseline's option that is searched."""
    unit: str
    """What is made equal: parameters or MACs."""


MATCHES: Mapping[str, Match] = {
    "resnet_matched": Match(encoder="resnet", reference="nfm", option="width", unit="parameters"),
    "resnet_macs": Match(encoder="resnet", reference="nfm", option="width", unit="MACs"),
    "lstm_matched": Match(encoder="lstm", reference="rim", option="hidden_size", unit="parameters"),
}
"""Name in a sweep to what it stands for."""


def variant_names() -> list[str]:
    """All names that `--encoders` accepts."""
    return [*encoder_names(), *MATCHES]


def reference_of(name: str) -> str:
    """The encoder whose options decide on that one's size: its reference, or itself."""
    return MATCHES[name].reference if name in MATCHES else name


def with_encoder(config: Config, name: str) -> Config:
    """The config with that encoder; a matched baseline's group of options is filled in.

    What the config says of sequences in replay holds for encoders with a state only; the others are
    trained on single steps, as many of them as the sequences of a batch have beyond their overlap.

    Args:
        config: holds the options of every encoder.
        name: one of `variant_names()`.

    Raises:
        ValueError: an unknown name, or a reference that cannot be matched.
    """
    if name in MATCHES:
        chosen = _matched(json.dumps(plain_values(config)), name)
    elif name in encoder_names():
        chosen = _replaced(config, encoder=name)
    else:
        raise ValueError(nearest("encoders", name, variant_names()))
    return chosen if build_encoder(chosen).recurrent else _without_sequences(chosen)


def _without_sequences(config: Config) -> Config:
    """The config for an encoder without a state, which is trained on single steps.

    A batch holds as many of them as its sequences have that their successors do not share. A step
    is then drawn as often as a sequence is; encoders with a state train on it more often, once for
    each sequence that it lies in (twice with half of each shared).
    """
    replay = config.replay
    batch_size = replay.batch_size * replay.stride_steps
    single = {"sequence_steps": 1, "overlap_steps": 0, "burn_in_steps": 0, "batch_size": batch_size}
    return _replaced(config, replay={**plain_values(replay), **single})


@cache
def _matched(values: str, name: str) -> Config:
    """The baseline's config from that of the sweep, as JSON: configs hold what has no hash."""
    config, match = make_config(json.loads(values)), MATCHES[name]
    reference = _replaced(config, encoder=match.reference)
    baseline, model = getattr(config, match.encoder), getattr(config, match.reference)
    shared = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(baseline)
        if field.name != match.option and hasattr(model, field.name)
    }

    def at(width: int) -> Config:
        group = dataclasses.replace(baseline, **shared, **{match.option: width})
        return _replaced(config, **{"encoder": match.encoder, match.encoder: plain_values(group)})

    count = _count_parameters if match.unit == "parameters" else _count_macs
    width = matching_width(count(reference), lambda width: count(at(width)), match.unit)
    return at(width)


def _count_parameters(config: Config) -> int:
    with torch.device("meta"):  # nothing is allocated there
        return count_parameters(build_encoder(config))


def _count_macs(config: Config) -> int:
    return encoder_macs(build_encoder(config), obs_shape(config))


def _replaced(config: Config, **changes: Any) -> Config:
    return make_config({**plain_values(config), **changes})
