"""A random generator for each of acting and learning, whatever draws from it.

Networks, noisy layers, dropout and plug-ins draw from torch's default generator of their device.
Acting and learning run side by side on a GPU, where a captured graph reads the seed and the offset
of its generator from memory when it runs: two graphs over one generator would read each other's.
So each side puts its generator in the place of the default one while it works.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class RandomStream:
    """A generator that takes the place of the device's default one inside `drawn()`."""

    def __init__(self, device: torch.device, seed: int):
        self.device = device
        self._generator = torch.Generator(device)
        self._generator.manual_seed(seed)

    @contextlib.contextmanager
    def drawn(self) -> Iterator[None]:
        """Inside, everything on this device draws from this stream."""
        if self.device.type != "cuda":
            outside = torch.get_rng_state()
            torch.set_rng_state(self._generator.get_state())
            try:
                yield
            finally:
                self._generator.set_state(torch.get_rng_state())
                torch.set_rng_state(outside)
            return
        default = _default_generator(self.device)
        outside = default.graphsafe_get_state()
        default.graphsafe_set_state(self._generator)
        try:
            yield
        finally:
            default.graphsafe_set_state(outside)

    def state(self) -> Tensor:
        """The state of the generator, uint8."""
        return self._generator.get_state()

    def takes(self, state: Tensor | None) -> bool:
        """Whether it can continue from this state, which is of a generator of the same kind."""
        return state is not None and state.shape == self.state().shape

    def load_state(self, state: Tensor) -> None:
        """Continue from a state of `state()`; a captured graph follows."""
        self._generator.set_state(state)

    def renew(self) -> None:
        """Replace the generator by a new one in the same state.

        A capture that failed leaves its generator believing that it is still being captured.
        """
        state = self._generator.get_state()
        self._generator = torch.Generator(self.device)
        self._generator.set_state(state)


def _default_generator(device: torch.device) -> torch.Generator:
    torch.cuda.init()
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
