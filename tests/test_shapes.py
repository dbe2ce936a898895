"""The shapes in signatures are checked under pytest, in every module of the networks that has them.

`check_shapes` in `tests/conftest.py` is the checker.
"""

import importlib
import re
from pathlib import Path

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import rl_nfm
from rl_nfm.encoders import make_encoder
from rl_nfm.nfm.attention import mix_values
from rl_nfm.nfm.rescale import Grid, gather_slots
from rl_nfm.rims.blocks import lstm_backward
from rl_nfm.values.losses import td_loss
from tests.conftest import check_shapes

ROOT = Path(rl_nfm.__file__).parent
UNCHECKED = {"rl_nfm.rims.products"}
"""Whose docstring says why."""
ANNOTATED = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if re.search(r"^from jaxtyping import", path.read_text(), re.MULTILINE)
)


@pytest.mark.parametrize("name", sorted({*ANNOTATED} - UNCHECKED))
def test_annotated_modules_are_checked(name: str) -> None:
    loader = importlib.import_module(name).__loader__
    assert type(loader).__name__ == "_JaxtypingLoader", f"{name} is missing in pyproject.toml"


@pytest.mark.parametrize(
    "call",
    [
        lambda: td_loss(torch.zeros(3), torch.zeros(1)),
        lambda: gather_slots(torch.zeros(2, 5, 3, dtype=torch.int64), (5,), "nearest"),
        lambda: mix_values(
            torch.ones(2, 4, 3, 1), [torch.ones(1, 4, 6)], Grid.of((4,), [(4,)], "nearest")
        ),
        lambda: make_encoder("nature")(
            torch.zeros(2, 1, 4, 84, 84, dtype=torch.uint8), (), torch.zeros(1, 2) > 0
        ),
        lambda: lstm_backward(torch.zeros(2, 1, 4), *torch.zeros(3, 2, 1, 1), torch.zeros(1)),
    ],
)  # fmt: skip
def test_what_would_broadcast_or_convert_is_refused(call) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


@jaxtyping.jaxtyped(typechecker=check_shapes)
def half(x: Float[Tensor, "B C"]) -> Float[Tensor, "B D"]:
    if x.shape[1] % 2:
        raise ValueError("an odd number of columns")
    return x[:, : x.shape[1] // 2].squeeze()


def test_errors_of_the_function_come_before_those_of_shapes() -> None:
    assert half(torch.zeros(3, 4)).shape == (3, 2)
    with pytest.raises(ValueError, match="odd"):
        half(torch.zeros(2, 3, 4))
    with pytest.raises(jaxtyping.TypeCheckError):
        half(torch.zeros(1, 4))  # its result has one dimension


@pytest.mark.filterwarnings("ignore")
def test_compilers_and_tracers_do_not_see_the_checks() -> None:
    x = torch.randn(3, 4)
    compiled = torch.compile(half, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), half(x))
    assert torch.equal(torch.jit.trace(half, x)(x), half(x))
