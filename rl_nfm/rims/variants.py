"""The published forms of Recurrent Independent Mechanisms, one name each.

Facts: the authors' code (anirudh9119/RIMs, `event_based`), the paper (arXiv 1909.10893) and the
most used re-implementation (dido1998). `s` is the hidden size of one RIM.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from annotated_types import Gt

from rl_nfm.support.bounds import Bounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant(Bounded):
    """What distinguishes the forms; the defaults are the authors' code.

    Raises:
        ValueError: a value that is not allowed, a gradient blocked where nothing is handed on, or
            slots in a form without them.
    """

    input_gate: Literal["null", "across"] = "null"
    """`null`: each RIM weighs the input against an all-zero slot, a sigmoid. `across`: a softmax
    over the RIMs divides each input among them, cut to the k active ones where n > k + 1."""
    input_bias: bool = False
    """Keys and values of the input have a bias, which the null slot then has too; RIMs are
    ranked by the raw logit of the input, no longer by their null attention."""
    mask_input: bool = False
    """Inactive RIMs compute their candidate from a zero input."""
    input_heads: Annotated[int, Gt(0)] = 1
    """Heads that read the input; their scores and what they read are averaged (dido1998's code)."""
    input_slots: Annotated[int, Gt(0)] = 1
    """How often a RIM finds the input beside the null slot, each time with keys and values of their
    own, of which it reads two slots at most (the authors' `num_modules_read_input`, less 1)."""
    input_key_size: Annotated[int, Gt(0)] = 64
    """Size of the queries and keys of one head that reads the input."""
    input_value_size: Annotated[int, Gt(0)] | None = None
    """Size of what one head reads from the input; None: 4 s."""
    cell_bias: bool = True
    """Whether the LSTM or GRU blocks have PyTorch's two biases."""
    communication: Literal["gated", "linear", "grouped"] = "gated"
    """How heads become an update: `gated` sigmoid(gate) * tanh(linear) and `linear`, both with
    weights that all RIMs share, or `grouped`, a linear map without bias for each RIM."""
    source: Literal["candidate", "previous"] = "candidate"
    """What an inactive RIM shows to the others: its candidate, computed as if it were active, or
    the state it keeps."""
    pass_inactive: bool = False
    """In a stack of layers, hand on to the next layer also what inactive RIMs keep; else zeros."""
    block_inactive_gradient: bool = False
    """With `pass_inactive`: what is handed on of inactive RIMs sends no gradient back."""
    heads: Annotated[int, Gt(0)] = 4
    """Heads of the communication."""
    key_size: Annotated[int, Gt(0)] = 16
    """Size of one head's queries and keys."""
    value_size: Annotated[int, Gt(0)] | None = 16
    """Size of one head's values; None: s."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_inactive_gradient and not self.pass_inactive:
            raise ValueError("block_inactive_gradient: has no effect without pass_inactive")
        if self.input_gate == "across" and self.input_bias:
            raise ValueError("input_bias: not with input_gate 'across', which has no null slot")
        if self.mask_input and self.cell_bias:
            raise ValueError("mask_input: not with cell_bias, whose biases it would mask too")
        plain = self.input_gate == "null" and not self.input_bias and self.input_heads == 1
        if self.input_slots > 1 and not plain:
            raise ValueError(
                f"input_slots: {self.input_slots} is only allowed with input_gate 'null', without "
                f"input_bias and with one of input_heads"
            )


VARIANTS = MappingProxyType(
    {
        "official": Variant(),
        "paper": Variant(communication="linear", key_size=32, value_size=32),
        "previous": Variant(source="previous"),
        "across": Variant(input_gate="across", key_size=32, value_size=32),
        "dido1998": Variant(
            input_bias=True,
            mask_input=True,
            input_value_size=400,
            cell_bias=False,
            communication="grouped",
            pass_inactive=True,
            key_size=32,
            value_size=None,
        ),
    }
)
"""`paper`: communication as a linear residual. `previous`: inactive RIMs show the state they keep.
`across`: the second form in the authors' code. `dido1998`: the sizes of that project's defaults."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BRIMVariant(Bounded):
    """Sizes of bidirectional RIMs (`rl_nfm.rims.bidirectional`); the defaults are `mnist`.

    What all heads together read of the input is 4 s wide.
    """

    input_heads: Annotated[int, Gt(0)] = 4
    """Heads that read the layer below, the layer above or nothing; must divide 4 s."""
    input_key_size: Annotated[int, Gt(0)] = 64
    """Size of the queries and keys of one of these heads."""
    heads: Annotated[int, Gt(0)] = 4
    """Heads of the communication within a layer."""
    key_size: Annotated[int, Gt(0)] = 32
    """Size of the queries and keys of one of these heads."""
    value_size: Annotated[int, Gt(0)] = 32
    """Size of the values of one of these heads."""


BRIM_VARIANTS = MappingProxyType(
    {"mnist": BRIMVariant(), "cifar10": BRIMVariant(input_heads=1, input_key_size=32)}
)
"""The two forms in the authors' code (sarthmit/BRIMs), called like its folders."""


def find_variant(variant: str | Variant) -> Variant:
    """The variant of RIMs of that name; a `Variant` is passed through.

    Raises:
        ValueError: for an unknown name, with the nearest one.
    """
    return variant if isinstance(variant, Variant) else VARIANTS[_known(variant, VARIANTS)]


def find_brim_variant(variant: str | BRIMVariant) -> BRIMVariant:
    """As `find_variant`, of bidirectional RIMs."""
    if isinstance(variant, BRIMVariant):
        return variant
    return BRIM_VARIANTS[_known(variant, BRIM_VARIANTS)]


def _known(name: str, variants: Mapping[str, object]) -> str:
    if name not in variants:
        from rl_nfm.support.configuration import nearest  # only here: it imports pydantic

        raise ValueError(nearest("variant", name, list(variants)))
    return name
