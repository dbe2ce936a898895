"""Which position of a modular network computes which gate of a task: its known routing.

Without shared modules a position computes one operation for all tasks, so positions are first
given to operations. With shared modules the positions are slots, which each task fills in its own
order, and each operation has a module. For one published task this gives the published tables.
"""

import dataclasses
from collections.abc import Sequence

from rl_nfm.modular.tasks import BooleanTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routing:
    """What each position reads and which module works there."""

    module_inputs: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]
    """Task, level, position: the units read. The last level has one position, the outputs."""
    modules: tuple[tuple[tuple[int, ...], ...], ...] | None
    """Task, level, position: the shared module that works there; None where none are shared."""


def known_routing(
    tasks: Sequence[BooleanTask], positions: Sequence[int], num_shared: int | None = None
) -> Routing:
    """The routing with which one network can solve `tasks`.

    Args:
        tasks: all with equally many levels.
        positions: modules (or slots) per level.
        num_shared: shared modules, if the positions are slots for them.

    Raises:
        ValueError: a wrong number of levels, or too few positions or shared modules.
    """
    field = "num_modules" if num_shared is None else "num_slots"
    depth = len(tasks[0].levels)
    if len(positions) != depth:
        raise ValueError(
            f"{field}: {tuple(positions)} has {len(positions)} levels "
            f"(allowed with known routing: {depth})"
        )
    places = [_place_level(tasks, level, num_shared is not None) for level in range(depth)]
    for level, (count, level_places) in enumerate(zip(positions, places, strict=True)):
        needed = 1 + max(place for row in level_places for place in row)
        if count < needed:
            raise ValueError(
                f"{field}: {count} at level {level + 1} is too few "
                f"(allowed with known routing: at least {needed})"
            )
    by_task = list(zip(*places, strict=True))  # task, level, gate
    inputs = tuple(_read(task, p, positions) for task, p in zip(tasks, by_task, strict=True))
    modules = None if num_shared is None else _assign(tasks, by_task, positions, num_shared)
    return Routing(module_inputs=inputs, modules=modules)


def _place_level(tasks: Sequence[BooleanTask], level: int, shared: bool) -> list[tuple[int, ...]]:
    """Position of each gate of each task at one level."""
    if shared:
        return [tuple(range(len(task.levels[level]))) for task in tasks]
    most: dict[str, int] = {}
    for task in tasks:
        operations = [gate.operation for gate in task.levels[level]]
        for operation in operations:
            most[operation] = max(most.get(operation, 0), operations.count(operation))
    rows = []
    for task in tasks:
        free = {name: sum(list(most.values())[:index]) for index, name in enumerate(most)}
        row = []
        for gate in task.levels[level]:
            row.append(free[gate.operation])
            free[gate.operation] += 1
        rows.append(tuple(row))
    return rows


def _read(
    task: BooleanTask, places: Sequence[Sequence[int]], positions: Sequence[int]
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Units read at each position of one task; a position without a gate reads the first two."""
    below: Sequence[int] = range(task.num_inputs)
    table = []
    for level, place, count in zip(task.levels, places, positions, strict=True):
        row: list[tuple[int, ...]] = [(0, 1)] * count
        for gate, position in zip(level, place, strict=True):
            row[position] = (below[gate.inputs[0]], below[gate.inputs[1]])
        table.append(tuple(row))
        below = place
    return (*table, (tuple(below),))


def _assign(
    tasks: Sequence[BooleanTask],
    places: Sequence[Sequence[Sequence[int]]],
    positions: Sequence[int],
    num_shared: int,
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The shared module at each slot: one module per operation, in the order of first use."""
    gates = [gate for task in tasks for level in task.levels for gate in level]
    operations = list(dict.fromkeys(gate.operation for gate in gates))
    if num_shared < len(operations):
        raise ValueError(
            f"num_shared_modules: {num_shared} cannot compute {', '.join(operations)} "
            f"(allowed with known routing: at least {len(operations)})"
        )
    table = []
    for task, task_places in zip(tasks, places, strict=True):
        rows = []
        for level, place, count in zip(task.levels, task_places, positions, strict=True):
            slots = [0] * count
            for gate, position in zip(level, place, strict=True):
                slots[position] = operations.index(gate.operation)
            rows.append(tuple(slots))
        table.append(tuple(rows))
    return tuple(table)


Tree = int | frozenset["Tree"]
"""An input, or the trees of the units that a module reads, in no order."""


def wiring(levels: Sequence[Sequence[Sequence[int]]]) -> tuple[Tree, ...]:
    """What each output depends on, whichever positions the modules between have.

    Two networks wire their outputs alike exactly if these are equal.

    Args:
        levels: level, position: the units read; the last level has one position, the outputs.
    """

    def tree(depth: int, unit: int) -> Tree:
        if depth < 0:
            return unit
        return frozenset(tree(depth - 1, below) for below in levels[depth][unit])

    return tuple(tree(len(levels) - 2, unit) for unit in levels[-1][0])
