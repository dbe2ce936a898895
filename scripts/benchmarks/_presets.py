"""The kernels that an update, an act and a row of replay launch on a GPU, for each preset."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from agents.config import Config
from agents.learning.actor import Actor
from agents.learning.learner import Learner
from agents.learning.narrow import narrow_
from agents.learning.network import QNetwork
from agents.replay.buffer import Replay
from agents.replay.returns import ReturnConfig
from agents.saving.checkpoint import build_network
from agents.training.step import GradientStep
from benchmarks._counting import Counter, Tally, tensors_in, total_bytes
from envs import make_env
from rl_nfm.backbones import norms
from rl_nfm.nfm import linear, output, places, triton_attention, triton_launch
from rl_nfm.rims import triton_check, triton_loop
from rl_nfm.support.triton_guard import TritonGuard

CUDA = torch.device("cuda", 0)


def count(config: Config) -> dict[str, Counter]:
    """Counters of "update", "act" and "add" (at a step that completes a sequence)."""
    with _fake_networks(config) as networks:
        return _count(config, *networks)


def broken_graphs(config: Config) -> list[str]:
    """Why the update, compiled, is more graphs than functions: a reason for each break."""
    from torch._dynamo.utils import counters

    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        return compiler(function, backend="eager")  # its graphs alone, which are what matters

    compiler = torch.compile
    counters.clear()
    with _fake_networks(config) as networks, mock.patch.object(torch, "compile", compile):
        _, _, step = _parts(config, *networks, compiled=True)
        step._run()
    assert counters["stats"]["unique_graphs"] > 0
    return [reason.splitlines()[0] for reason in counters["graph_break"].elements()]


@contextlib.contextmanager
def _fake_networks(config: Config, *, num_actions: int = 9) -> Iterator[list[QNetwork]]:
    """Two networks of fake CUDA tensors, in a context in which all new tensors are such."""
    obs_shape = _obs_shape(config)
    networks = [build_network(config, obs_shape, num_actions) for _ in range(2)]
    use_kernels = os.environ.get("RL_NFM_KERNELS", "1") != "0"
    with (
        contextlib.ExitStack() as stack,
        FakeTensorMode(allow_fallback_kernels=False) as mode,
        torch.device(CUDA),
    ):
        for patch in pretend(mode, use_kernels):
            stack.enter_context(patch)
        for network in networks:
            _make_fake(network, mode)
        yield networks


def _obs_shape(config: Config) -> tuple[int, int, int]:
    with contextlib.closing(make_env(config.game, num_envs=1, protocol=config.protocol)) as env:
        return env.step_spec.obs_shape


def pretend(mode: FakeTensorMode, use_kernels: bool) -> Iterator[Any]:
    """Treat the Triton kernels as checked, and count them where they would be launched."""
    yield mock.patch.object(TritonGuard, "ready", return_value=use_kernels)
    for module in (linear, triton_attention, triton_check):
        yield mock.patch.object(module, "runs_eagerly", return_value=True)
    for module in (norms, linear, output, places):  # fake parameters have a type of their own
        yield mock.patch.object(module, "is_untouched", lambda layer, *kinds: type(layer) in kinds)
    for module in (linear, triton_launch, triton_loop):
        yield mock.patch.object(module, "launch", _count_launch)
    yield mock.patch.object(triton_launch, "slot_rows", _with_numbers(triton_launch.slot_rows))
    for name in ("slot_table", "_visits"):
        make = _with_numbers(getattr(triton_launch, name))

        def table(*key: Any, make: Callable[..., Any] = make) -> Any:
            made = make(*key[:-1], torch.device("cpu"))
            return tree_map_only(Tensor, lambda x: _fake(x, mode), made)

        yield mock.patch.object(triton_launch, name, table)


def _count_launch(name: str, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    del grid, constants
    counter = Counter.active
    if counter is not None:
        one = {x.untyped_storage()._cdata: x for x in tensors_in(args)}
        counter.add(f"triton_{name}", Tally(1, total_bytes(list(one.values()))))


def _with_numbers(make: Callable[..., Any]) -> Callable[..., Any]:
    """Call `make` outside of the mode for fake tensors, which have no values."""

    def run(*args: Any) -> Any:
        with _disable_current_modes(), torch.device("cpu"):
            return make(*args)

    return run


def _fake(x: Tensor, mode: FakeTensorMode) -> FakeTensor:
    meta = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return FakeTensor(mode, meta, CUDA)


def _make_fake(network: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by fake ones of the same shapes and layouts on the GPU."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(_fake(parameter, mode)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _fake(buffer, mode))


_ATEN = torch.library.Library("aten", "IMPL")
# It changes its arguments in place and returns nothing, but PyTorch does not declare that.
_ATEN.impl("_fused_adam_.tensor_lr", lambda *_, **__: None, "Meta")


class _Adam(torch.optim.Adam):
    """The constructor reads the learning rate, which has no value here."""

    def __init__(self, params: Any, lr: Any, **options: Any):
        super().__init__(params, **options)
        self.param_groups[0]["lr"] = lr


def _parts(
    config: Config, online: QNetwork, target: QNetwork, *, compiled: bool
) -> tuple[Learner, Replay, GradientStep]:
    """Learner, a filled replay, and an update of both."""
    protocol = config.env.resolve()
    learner_config = dataclasses.replace(config.learner, precision="bf16", compile=compiled)
    returns = ReturnConfig(
        n_steps=learner_config.n_steps,
        discount=learner_config.discount,
        reward_clip=learner_config.reward_clip,
        terminal_on_life_loss=protocol.terminal_on_life_loss,
    )
    replay = Replay(
        config.replay, returns, num_envs=config.env.num_envs, obs_shape=_obs_shape(config),
        device=CUDA, state=online.initial_state(1),
    )  # fmt: skip
    with mock.patch.object(torch.optim, "Adam", _Adam):
        learner = Learner(learner_config, online, target, device=CUDA)
    replay.added_rows = 3 * replay.rows
    while (replay.added_rows - replay.future_steps) % replay.stride:
        replay.added_rows += 1
    return learner, replay, GradientStep(learner, replay)


def _count(config: Config, online: QNetwork, target: QNetwork) -> dict[str, Counter]:
    num_envs = config.env.num_envs
    learner, replay, step = _parts(config, online, target, compiled=False)
    actor = Actor(
        online,
        num_envs=num_envs,
        num_quantiles=config.learner.num_action_quantiles,
        dtype=learner.dtype,
        terminal_on_life_loss=replay.returns.terminal_on_life_loss,
    )
    counters = {name: Counter() for name in ("update", "act", "add")}
    step._run()  # creates the optimiser's moments
    with counters["update"]:
        step._run()
    obs = torch.zeros(num_envs, *_obs_shape(config), dtype=torch.uint8)
    start = torch.zeros(num_envs, dtype=torch.bool)
    reward, state = torch.zeros(num_envs), actor.state
    act = functools.partial(actor.act, obs, start, epsilon=torch.zeros(num_envs), noise=True)
    narrow_(online, learner.dtype or torch.float32, act)
    with counters["act"]:
        action = act()
    with counters["add"]:
        replay.add(
            frame=obs[:, -1], action=action, reward=reward, discount=start, episode_start=start,
            life_loss=start, episode_step=actor.episode_step, state=state,
        )  # fmt: skip
    return counters
