"""Neural Function Modules over a list of layers (Lamb et al. 2021, algorithm 1).

The list is the network: its layers run one after the other, `passes` times over the same input, and
between them stand the places that write to and read from one memory. `by_name` does the same for
a network that is no list.

Shapes: B batch, C channels of a layer, `*T` its sizes.
"""

import copy
from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from rl_nfm.nfm.config import NFMConfig
from rl_nfm.nfm.places import Memory, Place, Visit


def make_schedule(config: NFMConfig, num_places: int) -> list[Visit]:
    """All visits in their order; a write that no later read sees is left out.

    Raises:
        ValueError: for places that do not exist, or a read of a memory that is still empty.
    """
    everywhere = tuple(range(num_places))
    reading = _checked_places("read_places", config.read_places, everywhere)
    last = config.passes - 1
    writing = [_checked_places("write_places", config.write_places, everywhere)] * config.passes
    if config.early_write_places is not None:
        early = _checked_places("early_write_places", config.early_write_places, everywhere)
        if last == 0:
            raise ValueError(f"early_write_places: {early} has no effect on a single pass")
        writing[:last] = [early] * last
    first = last if config.read_passes == "last" else 0
    visits = [
        Visit(p, i, reads=i in reading and p >= first, writes=i in writing[p])
        for p in range(config.passes)
        for i in everywhere
    ]
    last_read = max(n for n, visit in enumerate(visits) if visit.reads)
    first_read = min(n for n, visit in enumerate(visits) if visit.reads)
    if not any(visit.writes for visit in visits[: first_read + 1]):
        raise ValueError(
            f"write_places: {writing[0]} writes nothing before place {visits[first_read].place} "
            f"reads for the first time (allowed: a place at or before it)"
        )
    return [
        visit._replace(writes=visit.writes and n <= last_read) for n, visit in enumerate(visits)
    ]


def _checked_places(
    name: str, chosen: tuple[int, ...] | None, allowed: tuple[int, ...]
) -> tuple[int, ...]:
    if chosen is None:
        return allowed
    wrong = [place for place in chosen if place not in allowed]
    if wrong or not chosen:
        raise ValueError(
            f"{name}: {wrong[0] if wrong else chosen} is no place of this network "
            f"(allowed: at least one of 0 to {len(allowed) - 1})"
        )
    return chosen


class Places(nn.Module):
    """All places of a network, with the parameters of each in each pass.

    Args:
        config: options.
        channels: of each place's layer, in the order in which the layers run.
        ranks: dimensions of each place's output besides batch and channels (2 for images).

    Raises:
        ValueError: for values of `config` or channels out of range.
    """

    def __init__(self, config: NFMConfig, *, channels: Sequence[int], ranks: Sequence[int]):
        super().__init__()
        from rl_nfm.support.configuration import validate

        self.config = validate(type(config), config, where="nfm")
        if not channels or min(channels) < 1:
            raise ValueError(
                f"channels: {tuple(channels)} is not allowed: one positive number each"
            )
        if not all(0 <= rank <= 3 for rank in ranks):
            raise ValueError(f"ranks: {tuple(ranks)} is not allowed: each 0, 1, 2 or 3")
        self.num_places = len(channels)
        self.channels, self.ranks = tuple(channels), tuple(ranks)
        self.schedule = make_schedule(config, len(channels))
        self.num_needed = tuple(map(self._num_needed, range(config.passes)))
        """Of each pass, how many layers matter: all of the last, others up to their last write."""
        self.places = nn.ModuleList(
            self._make_place(p, i, channels, ranks[i])
            for p in range(config.copies)
            for i in range(len(channels))
        )

    def _make_place(self, pass_index: int, place: int, channels: Sequence[int], rank: int) -> Place:
        visits = [
            (n, visit)
            for n, visit in enumerate(self.schedule)
            if visit.place == place and (self.config.share_passes or visit.pass_index == pass_index)
        ]
        last_read = max((n for n, visit in visits if visit.reads), default=-1)
        sources = {
            channels[visit.place] for visit in self.schedule[: last_read + 1] if visit.writes
        }
        return Place(
            self.config,
            channels=channels[place],
            rank=rank,
            reads=last_read >= 0,
            writes=any(visit.writes for _, visit in visits),
            source_channels=tuple(sorted(sources)),
        )

    def _num_needed(self, pass_index: int) -> int:
        if pass_index == self.config.passes - 1:
            return self.num_places
        visits = self.schedule[pass_index * self.num_places : (pass_index + 1) * self.num_places]
        return max((visit.place + 1 for visit in visits if visit.writes), default=0)

    def forward(
        self, x: Float[Tensor, "B C *T"], memory: Memory, *, pass_index: int, place: int
    ) -> Float[Tensor, "B C *T"]:
        """The output x of a layer, after writing and reading.

        Raises:
            ValueError: for an output of another shape than was said, or that is no tensor.
        """
        if not isinstance(x, Tensor):
            raise ValueError(f"the layer at place {place} gave {type(x).__name__}, not one tensor")
        if x.dim() - 2 != self.ranks[place] or x.shape[1] != self.channels[place]:
            raise ValueError(
                f"the layer at place {place} gave {tuple(x.shape)}, not {self.channels[place]} "
                f"channels and {self.ranks[place]} further sizes, as was said at the start"
            )
        if min(x.shape[1:]) == 0:
            raise ValueError(f"the layer at place {place} gave {tuple(x.shape)}: a size of zero")
        visit = self.schedule[pass_index * self.num_places + place]
        if not (visit.reads or visit.writes):
            return x
        owner = place if self.config.share_passes else pass_index * self.num_places + place
        return self.places[owner](x, memory, visit)


class NeuralFunctionModule(nn.Module):
    """A network given as a list of layers, with NFM between them.

    Earlier passes end at their last written layer: nothing sees what would come after it.

    Args:
        layers: modules that run one after the other, or such a list for each pass. A single list
            is copied for the further passes, which then start with equal weights, unless
            `share_passes` runs the same modules again.
        channels: of each layer's output.
        config: options.
        rank: dimensions of the outputs besides batch and channels: 0 vectors, 2 images.

    Raises:
        ValueError: for lists of wrong length or options out of range.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module] | Sequence[Sequence[nn.Module]],
        *,
        channels: Sequence[int],
        config: NFMConfig | None = None,
        rank: int = 2,
    ):
        super().__init__()
        config = config or NFMConfig()
        self.places = Places(config, channels=channels, ranks=[rank] * len(channels))
        self.passes = nn.ModuleList()
        for pass_index, one in enumerate(_lists_of_passes(layers, config)):
            if len(one) != len(channels):
                raise ValueError(f"channels: {len(channels)} numbers for {len(one)} layers")
            last = len(one) if config.share_passes else self.places.num_needed[pass_index]
            self.passes.append(nn.ModuleList(one[:last]))

    def forward(self, x: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B C *T"]:
        """The last layer's output in the last pass, for an input of the first layer."""
        memory: Memory = []
        h = x
        for pass_index in range(self.places.config.passes):
            h = x
            layers = self.passes[pass_index % len(self.passes)]
            assert isinstance(layers, nn.ModuleList)
            for place, layer in enumerate(layers[: self.places.num_needed[pass_index]]):
                h = self.places(layer(h), memory, pass_index=pass_index, place=place)
        return h


def _lists_of_passes(
    layers: Sequence[nn.Module] | Sequence[Sequence[nn.Module]], config: NFMConfig
) -> list[list[nn.Module]]:
    copies = config.copies
    if len(layers) and not isinstance(layers[0], Sequence | nn.ModuleList):
        first: list[nn.Module] = list(layers)  # pyright: ignore[reportAssignmentType]
        return [first, *(copy.deepcopy(first) for _ in range(copies - 1))]
    if len(layers) != copies:
        raise ValueError(f"layers: {len(layers)} lists of layers, but {copies} are needed")
    return [list(one) for one in layers]  # pyright: ignore[reportArgumentType]
