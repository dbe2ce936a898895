"""Options of Neural Function Modules, and the presets `paper` and `official`.

"Paper" is Lamb et al. 2021 (arXiv 2010.08012); "published code" its authors' repositories: one with
Sort-of-CLEVR, one with the GAN.
"""

import dataclasses
from typing import Annotated, Literal, Self, get_args

from annotated_types import Ge, Gt, Le, Lt

from rl_nfm.backbones.norms import Norm
from rl_nfm.support.bounds import Bounded

TopKMode = Literal["masked", "sab", "sab_published", "dense"]
Rescale = Literal["space_to_depth", "nearest"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NFMConfig(Bounded):
    """Options of Neural Function Modules."""

    passes: Annotated[int, Gt(0)] = 2
    """K of algorithm 1: how often the network runs over its input (published: 2; ablated: 1)."""
    share_passes: bool = False
    """Use one set of weights in all passes; the published code has one for each."""
    read_passes: Literal["last", "all"] = "last"
    """Passes that read the memory: `last` as in the published code, `all` as in algorithm 1."""
    read_places: tuple[Annotated[int, Ge(0)], ...] | None = None
    """Layers, from 0, after which the memory is read; by default all of them."""
    write_places: tuple[Annotated[int, Ge(0)], ...] | None = None
    """Layers, from 0, whose outputs are written to the memory; by default all of them."""
    early_write_places: tuple[Annotated[int, Ge(0)], ...] | None = None
    """The same for all passes but the last, by default `write_places` (the authors' ResNet writes
    behind its stages 2 to 4 in the first pass, and behind all in the second: `1 2 3` here)."""
    key_size: Annotated[int, Gt(0)] = 32
    """d_k: size of a key and a query of one head (Atari, CIFAR: 32; Sort-of-CLEVR: 16)."""
    value_size: Annotated[int, Gt(0)] = 32
    """d_v: size of a value of one head (Atari, CIFAR: 32; Sort-of-CLEVR: 16)."""
    heads: Annotated[int, Gt(0)] = 4
    """Attention heads, each choosing its own slots (4 everywhere but in table 8)."""
    top_k: Annotated[int, Gt(0)] = 4
    """Slots that a head may attend to, the null slot included (Atari: 4; classification: 5)."""
    top_k_mode: TopKMode = "masked"
    """How slots beyond the top k are cut: `masked`, softmax over the k highest scores; `sab`,
    probabilities less the (k+1)-th highest, normalised (Ke et al. 2018); `sab_published`, the same
    but dense for k + 1 slots, as coded; `dense`, not at all."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Divides the scores, besides sqrt(d_k)."""
    null_slot: bool = True
    """A slot of score 0 and value 0, to attend to nothing (paper; the GAN's code has none)."""
    rescale: Rescale = "space_to_depth"
    """How a finer memory is read: each pixel of the window a slot of its own (paper), or the one
    that nearest down-sampling keeps (published code)."""
    kv_owner: Literal["source", "reader"] = "source"
    """Whose weights make keys and values: the written layer's (published code; one product for all
    readers) or the reading layer's (paper; one matrix for each width of written layer)."""
    out_kernel: Literal[1, 3] = 1
    """Kernel of the output block: 1 (paper: linear layers), 3 (published code)."""
    out_layers: Literal[1, 2] = 2
    """Layers of the output block: 2 (paper and code), or 1, which is what the parameter counts of
    the paper's Synbols table amount to."""
    out_norm: Norm = "none"
    """Between the two layers of the output block (published: batch norm, which the paper drops in
    stacked MNIST)."""
    cat_input: bool = False
    """Give the output block the layer's own state beside what was read (the GAN's code)."""
    initial_gamma: Annotated[float, Ge(-10), Le(10)] = 0.0
    """Start of the gain gamma of what is read (paper and code: 0, so that attention can matter only
    after gamma has grown)."""
    attention_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout on attention in training (the GAN's code: 0.1)."""
    random_attention: bool = False
    """Outside training, Gaussian noise instead of scores: the paper's ablation (CIFAR-10 with it:
    96.5 to 88.5 %). `set_random_attention` switches it on a built network."""

    @property
    def copies(self) -> int:
        """Sets of layers: one for each pass, or one for all."""
        return 1 if self.share_passes else self.passes


NFM_PRESETS: dict[str, NFMConfig] = {
    "paper": NFMConfig(read_passes="all", kv_owner="reader", out_norm="batch"),
    "official": NFMConfig(
        top_k=3, top_k_mode="sab_published", rescale="nearest", out_kernel=3, out_norm="batch"
    ),
    "official_gan": NFMConfig(
        top_k=3,
        top_k_mode="sab_published",
        rescale="nearest",
        out_kernel=3,
        out_norm="batch",
        null_slot=False,
        cat_input=True,
        attention_dropout=0.1,
    ),
}
"""`paper`: the text of the paper, which reads behind each layer in each pass, with Atari's top-k of
4. `official`: what the published code does, which reads in the last pass alone and whose own top-k
option has no effect and is always 3. `official_gan`: the GAN's variant of that code."""


NFMPreset = Literal["none", "paper", "official", "official_gan"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskNFMConfig(NFMConfig):
    """Options of NFM in a task of its own sizes, which may begin from a published form."""

    preset: NFMPreset = "none"
    """Published form that the other options then change: `paper`, the authors' code
    (`official`, `official_gan`), or none of them; sizes and heads stay the task's."""

    def with_preset(self, preset: str) -> Self:
        """These options in another published form.

        Keys, values and heads keep their sizes, which are the task's. So do top-k and norm, except
        in the forms of the authors' code, where they are part of the form.

        Raises:
            ValueError: unknown preset.
        """
        if preset not in (allowed := get_args(NFMPreset)):
            raise ValueError(f"nfm.preset: {preset!r} is unknown (allowed: {', '.join(allowed)})")
        if preset == self.preset:
            return self
        kept = ["key_size", "value_size", "heads"]
        if preset in ("none", "paper"):
            kept += ["top_k", "out_norm"]
        form = NFMConfig() if preset == "none" else NFM_PRESETS[preset]
        values = {**vars(form), **{name: getattr(self, name) for name in kept}, "preset": preset}
        return type(self)(**values)
