import pytest

from envs import make_atari

SMALL = {"img_height": 21, "img_width": 16}


@pytest.fixture
def fresh():
    env = make_atari("breakout", num_envs=3, seed=5, **SMALL)
    yield env
    env.close()


@pytest.fixture(scope="module")
def env():
    """As `fresh`, but shared, because building takes long: tests begin with a reset."""
    env = make_atari("breakout", num_envs=3, seed=5, **SMALL)
    yield env
    env.close()
