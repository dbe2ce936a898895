"""Hierarchical Boolean tasks: what each gate computes, from which inputs, and the truth table.

From "How Can Knowledge of a Task's Modular Structure Improve Generalization and Training
Efficiency?" (TMLR 2025) and the code published with it, whose four modularities
([6, 2], [6, 2, 2], [6, 3, 2, 2], [6, 3, 3, 2, 2]), three [6, 3, 2, 2] tasks and two-digit task
are here as one rule (`boolean_task`), which also gives a task for other modularities:
  * level 1: XOR of inputs (0, 1), (2, 3), ...; inputs beyond are unused;
  * then AND and OR in turn; an AND level takes the nearest pairs of units below first, an OR level
    the farthest;
  * the last level is the output. [d, m] is short for [d, m, m].
"""

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

Operation = Literal["xor", "and", "or"]
MAX_INPUTS = 16
IMAGE_MODULARITY = (2, 2, 3, 2, 2)
MULTI_TASK_MODULARITY = (6, 3, 2, 2)
NUM_TASKS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """A two-input gate."""

    operation: Operation
    inputs: tuple[int, int]
    """Units of the level below."""

    def __call__(self, below: Tensor) -> Tensor:
        """Bool [..., units below] to bool [...]."""
        a, b = below[..., self.inputs[0]], below[..., self.inputs[1]]
        return {"xor": torch.logical_xor, "and": torch.logical_and, "or": torch.logical_or}[
            self.operation
        ](a, b)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BooleanTask:
    """Levels of gates over binary inputs; the last level is the output."""

    num_inputs: int
    levels: tuple[tuple[Gate, ...], ...]

    @property
    def num_outputs(self) -> int:
        """Gates of the last level."""
        return len(self.levels[-1])

    def labels(self, inputs: Tensor) -> Tensor:
        """Bool [..., num_inputs] to bool [..., num_outputs]."""
        units = inputs.bool()
        for level in self.levels:
            units = torch.stack([gate(units) for gate in level], dim=-1)
        return units

    def truth_table(self) -> tuple[Tensor, Tensor]:
        """All inputs and their labels, float [2 ** d, ...]; the last input runs fastest."""
        rows = torch.arange(2**self.num_inputs)
        shifts = torch.arange(self.num_inputs - 1, -1, -1)
        inputs = (rows[:, None] >> shifts) & 1
        return inputs.float(), self.labels(inputs).float()


def boolean_task(modularity: Sequence[int], task: int = 0) -> BooleanTask:
    """The task of a modularity, or one of its multi-task variants.

    Args:
        modularity: inputs, gates of each level, outputs.
        task: 0, or 1 or 2 for the other published [6, 3, 2, 2] tasks.

    Raises:
        ValueError: a modularity or variant that has no task.
    """
    sizes = tuple(modularity)
    if sizes == IMAGE_MODULARITY:
        return _digit_task()
    if task != 0:
        return _variant(sizes, task)
    _check(sizes)
    below, levels = sizes[0], []
    for depth, count in enumerate(_gate_counts(sizes)):
        operation: Operation = "xor" if depth == 0 else "and" if depth % 2 else "or"
        levels.append(tuple(_gate(operation, *pair) for pair in _pairs(operation, below)[:count]))
        below = count
    return BooleanTask(num_inputs=sizes[0], levels=tuple(levels))


def _gate_counts(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return sizes[1:-1] if len(sizes) > 2 else sizes[1:]


def _pairs(operation: Operation, below: int) -> list[tuple[int, int]]:
    """Pairs of units below, in the order in which a level's gates take them."""
    if operation == "xor":
        return [(i, i + 1) for i in range(0, below - 1, 2)]
    pairs = list(combinations(range(below), 2))
    if operation == "and":
        return sorted(pairs, key=lambda pair: (pair[1] - pair[0], pair[0]))
    return sorted(pairs, key=lambda pair: (pair[0] - pair[1], -pair[0]))


def _check(sizes: tuple[int, ...]) -> None:
    examples = "(allowed, for example: 6 2; 6 2 2; 6 3 2 2; 6 3 3 2 2; images: 2 2 3 2 2)"
    name = " ".join(map(str, sizes))

    def refuse(reason: str) -> ValueError:
        return ValueError(f"modularity: {name!r} has no task: {reason} {examples}")

    if len(sizes) < 2 or min(sizes) < 1:
        raise refuse("it needs inputs and outputs, all positive")
    if sizes[0] > MAX_INPUTS:
        raise refuse(f"at most {MAX_INPUTS} inputs, the table has 2 ** inputs rows")
    if len(sizes) > 2 and sizes[-1] != sizes[-2]:
        raise refuse("the outputs are the last level's gates, so both numbers must be equal")
    below = sizes[0]
    for depth, count in enumerate(_gate_counts(sizes)):
        most = len(_pairs("and" if depth else "xor", below))
        if count > most:
            kind = "pairs of units" if depth else "disjoint pairs of inputs"
            raise refuse(f"level {depth + 1} has {count} gates, but {below} give {most} {kind}")
        below = count


def _gate(operation: Operation, first: int, second: int) -> Gate:
    return Gate(operation=operation, inputs=(first, second))


def _variant(sizes: tuple[int, ...], task: int) -> BooleanTask:
    if sizes != MULTI_TASK_MODULARITY or not 0 <= task < NUM_TASKS:
        raise ValueError(
            f"num_tasks: modularity {' '.join(map(str, sizes))!r} has no task {task + 1} "
            f"(allowed: up to {NUM_TASKS} with 6 3 2 2, else 1)"
        )
    if task == 1:  # (x0 or x2) and (x3 or x4); (x1 or x5) and (x3 or x4)
        first = (_gate("or", 0, 2), _gate("or", 1, 5), _gate("or", 3, 4))
        second = (_gate("and", 0, 2), _gate("and", 1, 2))
    else:  # (x0 or x2) and (x4 xor x5); (x0 xor x1) and (x3 or x4)
        first = (_gate("or", 0, 2), _gate("xor", 4, 5), _gate("xor", 0, 1), _gate("or", 3, 4))
        second = (_gate("and", 0, 1), _gate("and", 2, 3))
    return BooleanTask(num_inputs=6, levels=(first, second))


def _digit_task() -> BooleanTask:
    """On the bits of two digits 0 to 7, highest first: XOR bit by bit, then AND of neighbours."""
    xors = tuple(_gate("xor", i, i + 3) for i in range(3))
    ands = tuple(_gate("and", i, i + 1) for i in range(2))
    return BooleanTask(num_inputs=6, levels=(xors, ands))
