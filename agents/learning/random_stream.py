"""Random numbers of one's own, whatever draws them.

Networks, noisy layers, dropout and plug-ins draw from torch's default generator of their device.
Acting and learning run side by side on a GPU, where a captured graph reads the seed and the offset
of its generator from memory when it runs: two graphs over one generator would read each other's.
So each side puts a generator of its own in the default one's place while it works.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class RandomStream:
    """A generator that takes the place of the device's default one inside `drawn()`."""

    def __init__(self, device: torch.device, seed: int):
        self.device = device
        self._own = torch.Generator(device)
        self._own.manual_seed(seed)

    @contextlib.contextmanager
    def drawn(self) -> Iterator[None]:
        """Inside, everything on this device draws from this stream."""
        if self.device.type != "cuda":
            outside = torch.get_rng_state()
            torch.set_rng_state(self._own.get_state())
            try:
                yield
            finally:
                self._own.set_state(torch.get_rng_state())
                torch.set_rng_state(outside)
            return
        default = _default_generator(self.device)
        outside = default.graphsafe_get_state()
        default.graphsafe_set_state(self._own)
        try:
            yield
        finally:
            default.graphsafe_set_state(outside)

    def state(self) -> Tensor:
        """Where it stands, uint8."""
        return self._own.get_state()

    def load_state(self, state: Tensor) -> None:
        """Go on from there; a captured graph follows."""
        self._own.set_state(state)

    def renew(self) -> None:
        """A new generator that stands where this one does.

        A capture that failed leaves its generator believing that it is still being captured.
        """
        state = self._own.get_state()
        self._own = torch.Generator(self.device)
        self._own.set_state(state)


def _default_generator(device: torch.device) -> torch.Generator:
    torch.cuda.init()
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
