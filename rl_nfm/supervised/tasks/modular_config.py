"""Options of the modular task, mostly named as on the published command line, and their checks."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

from rl_nfm.modular.tasks import IMAGE_MODULARITY
from rl_nfm.supervised.loop.options import RunConfig
from rl_nfm.supervised.loop.presets import DEFAULT, Presets

Size = Annotated[int, Gt(0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModularConfig(RunConfig):
    """Options of the modular task."""

    FORMER_NAMES: ClassVar = {
        "lr": "learning_rate",
        "lr_module_input": "learning_rate_module_input",
        "lr_module_location": "learning_rate_module_location",
        "eval_every": "eval_every_epochs",
        "search_every": "search_every_epochs",
    }

    experiment: Literal["generalization"] = "generalization"
    """Train on some rows of the truth table, test on the others."""
    num_tasks: Size = 1
    """Tasks trained together (up to 3, with modularity 6 3 2 2)."""
    modularity: tuple[int, ...] = (6, 3, 2, 2)
    """Inputs, gates of each level, outputs; 2 2 3 2 2 for two images of digits."""
    dataset_path: Path | None = None
    """The truth table is written below this folder as CSV, for other programs."""
    result_path: Path = Path("runs/supervised")
    """Runs without `--out` are made below this folder."""
    dataset_split: Annotated[tuple[Annotated[float, Gt(0), Lt(1)], ...], Len(1)] = (0.8,)
    """Shares of rows to train on, one run each; of the rest half validates, half tests."""
    dataset_split_seed: Annotated[int, Ge(0)] = 40
    """Of the split, equal for all seeds."""
    dataset_noise: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of the noise on training inputs, drawn anew each epoch (published: none,
    or 0.1 under a flag of this name)."""
    data: Literal["digits", "mnist"] = "digits"
    """Images of modularity 2 2 3 2 2: embedded in scikit-learn, or files in `data_folder`."""
    data_folder: Path | None = None
    """Folder of the MNIST files."""
    samples_per_row: Size = 1
    """Training examples of a row in an epoch (with images: pairs drawn)."""
    model: str = "hierarchically_modular"
    """One of the models listed above."""
    arch: tuple[Size, ...] = (6, 36, 36, 36, 2)
    """Sizes of the MLP; with several tasks the input has one more for each."""
    pruning_ratio: float = 0.0
    """Percent of the MLP's weights that are pruned at the start."""
    num_modules: Annotated[tuple[Size, ...], Len(1)] = (3, 2)
    """Modules of each level."""
    num_shared_modules: Size = 2
    """Modules that all slots choose from."""
    num_slots: Annotated[tuple[Size, ...], Len(1)] = (3, 2)
    """Slots of each level."""
    module_arch: tuple[Size, ...] = (2, 12, 1)
    """Sizes of a module's MLP; the first is the number of units it reads."""
    img_module_arch: Annotated[tuple[Size, ...], Len(2)] = (64, 64, 3)
    """Sizes of the MLP that reads an image (modularity 2 2 3 2 2)."""
    known_module_input: bool = False
    """What each module reads is given, not learned."""
    known_func_outputs: bool = False
    """Which modules' outputs are the network's is given, not learned; the rest is."""
    known_module_locations: bool = False
    """Which shared module works at each slot is given, not learned."""
    use_gumbel: bool = False
    """Gumbel noise on routing logits in training."""
    tau: Annotated[float, Gt(0)] = 1.0
    """Temperature of the routing's surrogate gradient."""
    per_sample_routing: bool = False
    """Noise for each example instead of each batch."""
    optimizer: Literal["adam", "sgd", "momentum", "rms"] = "adam"
    """`momentum`: SGD with Nesterov momentum 0.9; `rms`: RMSprop."""
    loss: Literal["BCE", "MSE", "CE"] = "BCE"
    """Of the outputs' probabilities: binary cross-entropy, squared error, or cross-entropy after a
    softmax over them, all as published."""
    learning_rate: Annotated[float, Gt(0)] = 0.01
    """Step size of the optimiser for weights."""
    learning_rate_module_input: Annotated[float, Ge(0)] = 0.1
    """Step size for what modules read; 0: moved by the search alone."""
    learning_rate_module_location: Annotated[float, Ge(0)] = 0.1
    """Step size for which module works at a slot; 0: moved by the search alone."""
    scheduler: Literal["exp", "cosine"] = "exp"
    """All step sizes are multiplied by `gamma` after each epoch, or fall to 0 along half a cosine
    over `epochs` (the published code accepts the word and still uses `exp`)."""
    gamma: Annotated[float, Gt(0), Le(1)] = 1.0
    """See `scheduler`; 1: step sizes stay."""
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    """L2 penalty of the optimiser, on routing logits too, as published."""
    batch_size: Size = 64
    """Examples of an update."""
    epochs: Size = 1000
    """Passes over the training rows."""
    eval_every_epochs: Size = 50
    """Epochs between evaluations (and checkpoints)."""
    routing_candidates: Size = 1
    """Networks of a seed among which its routing is searched; 1: no search, as published."""
    search_every_epochs: Size = 50
    """Epochs between replacing the worst candidates."""


PRESETS = Presets("modular", ModularConfig)


def check_config(config: ModularConfig) -> None:
    """Check options that do not depend on the model.

    Raises:
        ValueError: one that has no effect beside the others.
    """
    if config.known_func_outputs and config.known_module_input:
        raise ValueError("known_func_outputs: has no effect beside known_module_input")
    if config.scheduler == "cosine" and config.gamma != 1:
        raise ValueError("gamma: has no effect on scheduler 'cosine' (read by: exp)")
    images, defaults = config.modularity == IMAGE_MODULARITY, PRESETS[DEFAULT]
    for name in () if images else ("data", "data_folder", "img_module_arch"):
        if getattr(config, name) != getattr(defaults, name):
            raise ValueError(f"{name}: has no effect on bits (read with modularity 2 2 3 2 2)")
