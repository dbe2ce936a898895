"""The models of the modular task: a pruned MLP, and hierarchies of modules, their own or shared.

A model is registered as a function of the options, the Boolean tasks and the size of an input: its
bits, or the pixels of one image.
"""

from collections.abc import Sequence

from torch import nn

from rl_nfm.modular import (
    BooleanTask,
    HierarchicallyModular,
    Level,
    PrunedMLP,
    Routing,
    RoutingConfig,
    known_routing,
    wiring,
)
from rl_nfm.modular.tasks import IMAGE_MODULARITY
from rl_nfm.supervised.loop.seed_batch import SeedBatch
from rl_nfm.supervised.models import Models
from rl_nfm.supervised.tasks.modular_config import ModularConfig

MODELS = Models("modular")
_MODULES = ("module_arch", "img_module_arch", "known_module_input", "known_func_outputs")
_MODULES += ("use_gumbel", "tau", "per_sample_routing", "learning_rate_module_input")
_MODULES += ("routing_candidates", "search_every_epochs")
_SHARED = ("num_shared_modules", "num_slots", "known_module_locations")
_SHARED += ("learning_rate_module_location",)


@MODELS.register("mlp", "a pruned MLP", reads=("arch", "pruning_ratio"))
def _mlp(config: ModularConfig, tasks: Sequence[BooleanTask], input_size: int) -> nn.Module:
    first = input_size * (2 if config.modularity == IMAGE_MODULARITY else 1)
    first += config.num_tasks if config.num_tasks > 1 else 0
    last = tasks[0].num_outputs
    if len(config.arch) < 2 or (config.arch[0], config.arch[-1]) != (first, last):
        raise ValueError(
            f"arch: {config.arch} does not match the task (allowed: {first} first and {last} last)"
        )
    return PrunedMLP(config.arch, config.pruning_ratio, num_tasks=config.num_tasks)


@MODELS.register(
    "hierarchically_modular", "a module at each position", reads=("num_modules", *_MODULES)
)
def _own(config: ModularConfig, tasks: Sequence[BooleanTask], input_size: int) -> nn.Module:
    return _hierarchy(config, tasks, input_size, None)


@MODELS.register(
    "hierarchically_modular_shared_modules",
    "a few modules that all positions choose from",
    reads=(*_SHARED, *_MODULES),
)
def _shared(config: ModularConfig, tasks: Sequence[BooleanTask], input_size: int) -> nn.Module:
    return _hierarchy(config, tasks, input_size, config.num_shared_modules)


def _hierarchy(
    config: ModularConfig, tasks: Sequence[BooleanTask], input_size: int, shared: int | None
) -> nn.Module:
    """Modules in levels, `shared` of them for all positions of a level or one for each."""
    images = config.modularity == IMAGE_MODULARITY
    _check_sizes(config, input_size, images)
    positions = config.num_modules if shared is None else config.num_slots
    levels = [
        Level(
            positions=count, arch=config.module_arch, reads=config.module_arch[0], num_shared=shared
        )
        for count in positions
    ]
    if images:
        bank = None if shared is None else 1  # one module can read both images
        levels.insert(0, Level(positions=2, arch=config.img_module_arch, reads=1, num_shared=bank))
    known = None
    if config.known_module_input or config.known_func_outputs or config.known_module_locations:
        known = known_routing(tasks, positions, shared)
        known = _behind_images(known) if images else known
    return HierarchicallyModular(
        config.modularity[0],
        tasks[0].num_outputs,
        levels,
        num_tasks=config.num_tasks,
        routing=RoutingConfig(
            use_gumbel=config.use_gumbel,
            tau=config.tau,
            per_sample_routing=config.per_sample_routing,
        ),
        known_inputs=known if config.known_module_input else None,
        known_outputs=known if config.known_func_outputs else None,
        known_modules=known if config.known_module_locations else None,
    )


def _check_sizes(config: ModularConfig, input_size: int, images: bool) -> None:
    if len(config.module_arch) < 2 or config.module_arch[-1] != 1:
        raise ValueError(f"module_arch: {config.module_arch} must end in 1 (allowed: 2 ... 1)")
    if config.known_module_input and config.module_arch[0] != 2:
        raise ValueError(
            f"module_arch: {config.module_arch} must begin with 2 where known_module_input is set"
        )
    if images and (config.img_module_arch[0], config.img_module_arch[-1]) != (input_size, 3):
        raise ValueError(
            f"img_module_arch: {config.img_module_arch} does not match the images "
            f"(allowed: {input_size} first and 3 last)"
        )


def _behind_images(routing: Routing) -> Routing:
    """The routing with a first level in which slot i reads image i."""
    inputs = tuple((((0,), (1,)), *levels) for levels in routing.module_inputs)
    modules = routing.modules and tuple(((0, 0), *levels) for levels in routing.modules)
    return Routing(module_inputs=inputs, modules=modules)


def right_modules(batch: SeedBatch, tasks: Sequence[BooleanTask], index: int) -> list[bool]:
    """For each output of each task on bits, whether its modules are wired as in the task.

    Args:
        batch: the networks.
        tasks: what they were trained on.
        index: of the network in question.

    Returns:
        Empty for networks that are no hierarchy of modules.
    """
    if not isinstance(batch.first, HierarchicallyModular):
        return []
    chosen = [units[index] for units in batch.first.chosen_units(batch.values)]
    found = []
    for number, task in enumerate(tasks):
        levels = [units[number].T.tolist() for units in chosen]  # level, position, units
        wanted = known_routing([task], [len(level) for level in task.levels])
        learned = wiring(levels)
        found += [a == b for a, b in zip(learned, wiring(wanted.module_inputs[0]), strict=True)]
    return found
