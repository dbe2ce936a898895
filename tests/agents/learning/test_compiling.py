"""Whether the loss is compiled: by option, by a measurement, by what the cache knows of it."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.learning import compiling
from agents.learning.compiling import Compiling, how_to_compile
from agents.learning.config import LearnerConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TURNS = compiling.WARM_UP_UPDATES + compiling.MEASURED_UPDATES


class Losses:
    """A loss that gives its kind, on a clock that stands still but for what updates take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds = {"eager": 1.0, "compiled": 1.0}

    def perf_counter(self) -> float:
        return self.now

    def loss(self, kind: str = "eager") -> str:
        self.now += self.seconds[kind]
        return kind

    def choice(self, how: compiling.Compile = "measured", about: str = "") -> Compiling:
        return Compiling(self.loss, how, about=about)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Losses:
    losses = Losses()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "time", losses)
    monkeypatch.setattr(torch, "compile", lambda loss: lambda: loss("compiled"))
    return losses


def call(choice: Compiling) -> str:
    return choice(lambda loss: loss())


@pytest.mark.parametrize(
    ("asked", "on_cpu", "on_short_cpu", "on_cuda"),
    [
        (True, "always", "always", "always"),
        (False, "never", "never", "never"),
        ("auto", "measured", "never", "always"),
        ("cpu", "measured", "never", "never"),
    ],
)
def test_what_the_option_asks_for(asked: Any, on_cpu: str, on_short_cpu: str, on_cuda: str) -> None:
    config = LearnerConfig(compile=asked)
    assert how_to_compile(config, CPU, 20_000) == on_cpu
    assert how_to_compile(config, CPU, 19_999) == on_short_cpu
    assert how_to_compile(config, CUDA, 1e9) == on_cuda


@pytest.mark.parametrize(
    ("compiled", "kept", "said"),
    [
        (0.9, "compiled", "compiled, an update takes 0.90 of its time: it stays compiled"),
        (0.98, "eager", "compiled, an update takes 0.98 of its time: it is not compiled"),
        (1.2, "eager", "compiled, an update takes 1.20 of its time: it is not compiled"),
    ],
)
def test_both_take_turns_and_the_quicker_stays(
    compiled: float, kept: str, said: str, losses: Losses
) -> None:
    losses.seconds["compiled"] = compiled
    choice = losses.choice()
    begun = choice.notice()
    assert begun is not None
    assert begun.startswith("compiling the update, to see whether it becomes faster")
    turns = [call(choice) for _ in range(2 * TURNS)]
    assert turns[:8] == [*("eager", "compiled", "compiled", "eager"),
                         *("compiled", "eager", "eager", "compiled")]  # fmt: skip
    assert turns.count("eager") == turns.count("compiled") == TURNS
    assert choice.notice() == said
    assert choice.notice() is None
    assert {call(choice) for _ in range(5)} == {kept}


@pytest.mark.parametrize("of_a_step", [[1], [2], [4], [2, 3, 3], [8]])
def test_what_the_first_update_of_a_step_takes_longer_favours_neither_kind(
    of_a_step: list[int], losses: Losses, tmp_path: Path
) -> None:
    """Emulators work beside it: by turns alone, every eager update would be a first one."""
    choice = losses.choice()
    for updates in itertools.cycle(of_a_step):
        for place in range(updates):
            losses.seconds = dict.fromkeys(losses.seconds, 1.0 if place else 1.4)
            call(choice)
        if choice.how != "measured":
            break
    (file,) = (tmp_path / "cache" / "rl_nfm" / "compiling").iterdir()
    found = json.loads(file.read_text())
    assert found["compiled_ms"] == pytest.approx(found["eager_ms"], rel=0.02)
    assert choice.how == "never"


def test_a_pause_of_a_few_updates_does_not_count(losses: Losses) -> None:
    """Whatever else the machine did meanwhile: one kind or the other is met by chance."""
    losses.seconds["compiled"] = 0.9
    choice = losses.choice()
    for turn in range(2 * TURNS):
        losses.now += 100.0  # between updates: not theirs
        choice(lambda loss, turn=turn: pause(losses, loss() == "compiled" and 20 <= turn < 28))
    assert call(choice) == "compiled"


def pause(losses: Losses, met: bool) -> None:
    losses.now += 100.0 * met


def test_the_first_updates_do_not_count_which_compile(losses: Losses) -> None:
    choice = losses.choice()
    losses.seconds["compiled"] = 100.0
    for _ in range(2 * compiling.WARM_UP_UPDATES):
        call(choice)
    losses.seconds["compiled"] = 0.5
    for _ in range(2 * compiling.MEASURED_UPDATES):
        call(choice)
    assert call(choice) == "compiled"


@pytest.mark.parametrize(("compiled", "kept"), [(0.5, "compiled"), (2.0, "eager")])
def test_the_cache_keeps_the_answer(
    compiled: float, kept: str, losses: Losses, tmp_path: Path
) -> None:
    losses.seconds["compiled"] = compiled
    first = losses.choice(about="a net")
    for _ in range(2 * TURNS):
        call(first)
    (file,) = (tmp_path / "cache" / "rl_nfm" / "compiling").iterdir()
    assert json.loads(file.read_text()) == {"eager_ms": 1000.0, "compiled_ms": 1000 * compiled}
    again = losses.choice(about="a net")
    assert call(again) == kept
    assert (again.notice() is None) == (kept == "eager")
    assert losses.choice(about="another net").how == "measured"


@pytest.mark.parametrize(
    ("where", "name", "other"),
    [
        (torch, "__version__", "9.9"),
        (torch, "get_num_threads", lambda: 77),
        (torch.backends.cpu, "get_cpu_capability", lambda: "another"),
        (compiling, "_processor", lambda: "another"),
    ],
)
def test_an_answer_holds_for_one_machine(
    where: Any, name: str, other: Any, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = losses.choice()
    for _ in range(2 * TURNS):
        call(choice)
    assert losses.choice().how == "never"
    monkeypatch.setattr(where, name, other)
    assert losses.choice().how == "measured"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000,
     b"[]", b"1", b"\xff", b'{"eager_ms": 1}', b'{"eager_ms": 0, "compiled_ms": 1}',
     b'{"eager_ms": 1, "compiled_ms": -1}', b'{"eager_ms": 1, "compiled_ms": "fast"}',
     b'{"eager_ms": 1, "compiled_ms": NaN}', b'{"eager_ms": 1, "compiled_ms": Infinity}'],
)  # fmt: skip
def test_a_damaged_answer_is_measured_again(content: bytes, losses: Losses, tmp_path: Path) -> None:
    first = losses.choice()
    for _ in range(2 * TURNS):
        call(first)
    (file,) = (tmp_path / "cache" / "rl_nfm" / "compiling").iterdir()
    file.write_bytes(content)
    assert losses.choice().how == "measured"


def test_without_a_cache_it_is_measured_every_time(losses: Losses, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    losses.seconds["compiled"] = 0.5
    for _ in range(2):
        choice = losses.choice()
        assert choice.how == "measured"
        for _ in range(2 * TURNS):
            call(choice)
        assert call(choice) == "compiled"


def test_without_a_home_it_is_measured_every_time(
    losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", unknown)
    losses.seconds["compiled"] = 0.5
    choice = losses.choice()
    assert choice.how == "measured"
    for _ in range(2 * TURNS):
        call(choice)
    assert call(choice) == "compiled"


@pytest.mark.parametrize("how", ["always", "measured"])
def test_what_cannot_be_compiled_stays_as_it_is(
    how: compiling.Compile, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Callable[..., Any]) -> Callable[..., Any]:
        def compiled() -> str:
            raise RuntimeError("no compiler\nand more")

        return compiled

    monkeypatch.setattr(torch, "compile", fails)
    choice = losses.choice(how)
    with pytest.warns(RuntimeWarning, match=r"cannot be compiled .*\(RuntimeError: no compiler\)"):
        found = [call(choice) for _ in range(2)]
    assert found == ["eager", "eager"]
    assert [call(choice) for _ in range(3)] == ["eager"] * 3


def test_what_later_cannot_be_compiled_anew_goes_on_as_it_is(
    losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = False

    def compiled() -> str:
        if full:
            raise OSError("no space left on device")
        return losses.loss("compiled")

    monkeypatch.setattr(torch, "compile", lambda _: compiled)
    choice = losses.choice("always")
    assert call(choice) == "compiled"
    full = True
    with pytest.warns(RuntimeWarning, match="no space left"):
        assert call(choice) == "eager"
    assert call(choice) == "eager"


def test_kernels_switched_off_are_measured_apart(
    losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RL_NFM_KERNELS", raising=False)
    first = losses.choice()
    for _ in range(2 * TURNS):
        call(first)
    assert losses.choice().how != "measured"
    monkeypatch.setenv("RL_NFM_KERNELS", "0")
    assert losses.choice().how == "measured"


def test_an_error_of_the_loss_itself_is_raised(losses: Losses) -> None:
    def update(_: Callable[..., Any]) -> None:
        raise ValueError("not the compiler's")

    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="not the compiler's"):
        losses.choice("always")(update)
