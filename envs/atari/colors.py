"""The picture of a game in colour, from a second emulator that plays along.

Observations are grey and small. Emulation is deterministic, sticky actions included, so emulators
of the same seed that are given the same actions show the same play, and nothing about the episode
that is scored changes. It costs the emulation a second time, and only where it is asked for.
"""

import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from envs.atari.protocols import AtariProtocol

HEIGHT, WIDTH = 210, 160
"""Of the picture, in pixels; it is meant for a screen of 4:3."""


class ColorTwin:
    """Emulators that show colours at full size; all other settings are those of the protocol."""

    def __init__(self, game: str, protocol: AtariProtocol, *, num_envs: int, num_threads: int = 1):
        settings = dict(vars(protocol))
        del settings["name"], settings["terminal_on_life_loss"]
        settings |= {"stack_num": 1, "img_height": HEIGHT, "img_width": WIDTH}
        self._vec = AtariVectorEnv(
            game,
            num_envs,
            num_threads=num_threads,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            episodic_life=False,
            life_loss_info=False,
            reward_clipping=False,
            grayscale=False,
            **settings,
        )

    def reset(self, seed: int | None) -> NDArray[np.uint8]:
        """Begin anew with the seed of the first emulators; pictures [N, 210, 160, 3], RGB."""
        obs, _ = self._vec.reset(seed=seed)
        return obs[:, 0]

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Pictures [N, 210, 160, 3] and raw rewards [N] after the actions [N]."""
        obs, reward, *_ = self._vec.step(actions)
        return obs[:, 0], reward
