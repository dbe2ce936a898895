"""An actor on fixed buffers does what the plain one does."""

import types

import numpy as np
import pytest
import torch

from agents.learning.actor import Actor
from agents.learning.random_stream import RandomStream
from agents.learning.static_actor import StaticActor
from agents.learning.streams import HostStream

CPU = torch.device("cpu")
HEAD = {"distribution": "iqn", "dueling": True, "noisy": True}


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("terminal", [False, True])
def test_actions_states_and_rows_are_those_of_the_plain_actor(
    recurrent: bool, terminal: bool, toys: types.SimpleNamespace
) -> None:
    """Over episodes of unequal lengths, lost lives among them; stacks are rebuilt from frames."""
    encoder = toys.CellEncoder if recurrent else toys.LinearEncoder
    network = toys.make_network(encoder(), 1, **HEAD).eval()
    options = {"num_envs": 3, "num_quantiles": 5, "dtype": None, "terminal_on_life_loss": terminal}
    plain, actor = Actor(network, **options), Actor(network, **options)
    acted, received = [], []
    copied = {"on_act": copies(acted), "on_receive": copies(received)}
    stream = RandomStream(CPU, 7)
    assert stream.takes(stream.state())
    assert not stream.takes(torch.zeros(16, dtype=torch.uint8)), "as a GPU's generator has"
    assert not stream.takes(None)
    static = StaticActor(actor, toys.obs_shape, HostStream(), graph=True, random=stream, **copied)
    rng = np.random.default_rng(0)
    start, obs = np.ones(3, bool), np.zeros((3, *toys.obs_shape), np.uint8)
    ended = lost = over = np.zeros(3, bool)
    reward = np.zeros(3, np.float32)
    for step in range(40):
        new = rng.integers(0, 256, (3, 3, 2), dtype=np.uint8)
        obs = np.stack([obs[:, 1] * ~start[:, None, None], new], 1)
        epsilon = rng.random(3).astype(np.float32)
        if step == 0:
            static.begin(obs, episode_start=start, epsilon=epsilon)
        else:
            static.receive(
                obs, reward, terminated=over, episode_start=start, life_loss=lost, epsilon=epsilon
            )
            assert torch.equal(received[-1]["reward"], torch.from_numpy(reward))
            assert torch.equal(received[-1]["discount"], torch.from_numpy(~over))
            assert torch.equal(received[-1]["life_loss"], torch.from_numpy(lost))
        state = plain.state
        mirror = RandomStream(CPU, 0)
        mirror.load_state(stream.state())
        with mirror.drawn():
            expected = plain.act(
                torch.from_numpy(obs),
                torch.from_numpy(start),
                epsilon=torch.from_numpy(epsilon),
                noise=True,
            )
        assert static.act().tolist() == expected.tolist()
        row = acted[-1]
        assert torch.equal(row["frame"], torch.from_numpy(new))
        assert torch.equal(row["episode_start"], torch.from_numpy(start))
        assert torch.equal(row["action"], expected)
        assert torch.equal(row["episode_step"], plain.episode_step)
        for index, before in enumerate(state):
            assert torch.equal(row[f"state.{index}"], before)
        reward = rng.standard_normal(3).astype(np.float32)
        lost, over = rng.random(3) < 0.2, rng.random(3) < 0.15
        plain.observe(torch.from_numpy(reward), torch.from_numpy(lost))
        start, ended = ended, over
    assert len(acted) == 40
    assert len(received) == 39


def copies(into: list) -> object:
    return lambda row: into.append({name: x.clone() for name, x in row.items()})
