import dataclasses
import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from annotated_types import Ge, Gt, Le

from rl_nfm.support.configuration import MAX_ERROR_LINES, nearest, validate
from rl_nfm.support.flags import parse_flags
from rl_nfm.support.yaml_file import read_yaml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A group."""

    learning_rate: Annotated[float, Gt(0), Le(1)] = 0.5
    """Share of the error that is corrected."""

    clip: Annotated[float, Gt(0)] | None = 1.0
    """Bound."""

    low: int = 1
    """Lower end."""

    high: int = 2
    """Upper end."""

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low: {self.low} is not allowed: must not exceed high ({self.high})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options."""

    count: Annotated[int, Gt(0), Le(100)] = 3
    """How many."""

    share: Annotated[float, Ge(0), Le(1)] = 0.25
    """How much."""

    fast: bool = False
    """Whether to hurry."""

    mode: Literal["small", "large"] = "small"
    """Which."""

    limit: int | None = None
    """Most."""

    name: str = "x"
    """What it is called."""

    group: Group = dataclasses.field(default_factory=Group)


def error_of(values: Any, **kwargs: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        validate(Options, values, **kwargs)
    return str(caught.value)


def test_defaults_fill_what_is_missing() -> None:
    assert validate(Options, {}) == Options()
    made = validate(Options, {"count": 7, "group": {"clip": None}})
    assert made == Options(count=7, group=Group(clip=None))
    assert isinstance(made.group, Group)


def test_an_instance_is_checked_again() -> None:
    assert validate(Options, Options(count=5)) == Options(count=5)
    with pytest.raises(ValueError, match=r"^count: 0 is not allowed: must be above 0$"):
        validate(Options, Options(count=0))
    with pytest.raises(ValueError, match=r"^group\.clip: -1\.0 is not allowed"):
        validate(Options, Options(group=Group(clip=-1.0)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 3}, "cuont: 'cuont' is unknown; did you mean 'count'? (allowed: count, share,"),
        (
            {"zzz": 3},
            "zzz: 'zzz' is unknown (allowed: count, share, fast, mode, limit, name, group",
        ),
        (
            {"group": {"learning_rte": 1}},
            "group.learning_rte: 'learning_rte' is unknown; did you mean 'learning_rate'? "
            "(allowed: learning_rate, clip, low, high)",
        ),
    ],
)
def test_unknown_keys_name_the_nearest(values: dict[str, Any], message: str) -> None:
    assert error_of(values).startswith(message)
    assert error_of(values, where="my.yaml").startswith(f"my.yaml: {message}")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"count": 0}, "count: 0 is not allowed: must be above 0"),
        ({"count": 101}, "count: 101 is not allowed: must be at most 100"),
        ({"count": 2.5}, "count: 2.5 is not allowed: must be an integer"),
        ({"count": "many"}, "count: 'many' is not allowed: must be an integer"),
        ({"count": None}, "count: None is not allowed"),
        ({"count": [3]}, "count: [3] is not allowed"),
        ({"share": -0.1}, "share: -0.1 is not allowed"),
        ({"share": "half"}, "share: 'half' is not allowed: must be a number"),
        ({"share": math.nan}, "share: nan is not allowed: must be"),
        ({"share": math.inf}, "share: inf is not allowed"),
        ({"fast": "maybe"}, "fast: 'maybe' is not allowed: must be true or false"),
        ({"fast": None}, "fast: None is not allowed"),
        ({"mode": "medium"}, "mode: 'medium' is not allowed: must be 'small' or 'large'"),
        ({"mode": 1}, "mode: 1 is not allowed"),
        ({"limit": "nothing"}, "limit: 'nothing' is not allowed"),
        ({"name": 3}, "name: 3 is not allowed: must be text"),
        ({"group": {"learning_rate": 0}}, "group.learning_rate: 0 is not allowed: must be above 0"),
        ({"group": {"clip": 0}}, "group.clip: 0 is not allowed"),
        ({"group": 3}, "group: 3 is not allowed: must be a group of options"),
        ({"group": None}, "group: None is not allowed"),
        ({"group": [1, 2]}, "group: [1, 2] is not allowed"),
    ],
)
def test_wrong_types_and_values_are_one_line(values: dict[str, Any], field: str) -> None:
    message = error_of(values)
    assert message.startswith(field)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"count": True}, "count: True is not allowed"),
        ({"share": True}, "share: True is not allowed"),
        ({"limit": False}, "limit: False is not allowed"),
        ({"group": {"clip": True}}, "group.clip: True is not allowed"),
        ({"fast": 1}, "fast: 1 is not allowed"),
        ({"fast": 0.0}, "fast: 0.0 is not allowed"),
        ({"fast": "true"}, "fast: 'true' is not allowed"),
    ],
)
def test_numbers_and_booleans_are_kept_apart(values: dict[str, Any], field: str) -> None:
    message = error_of(values, where="f")
    assert message.startswith(f"f: {field}")
    assert "\n" not in message


def test_a_rule_between_fields_is_one_short_line() -> None:
    expected = "group.low: 5 is not allowed: must not exceed high (2)"
    assert error_of({"group": {"low": 5}}) == expected
    with pytest.raises(ValueError, match=r"^low: 5 is not allowed: must not exceed high \(2\)$"):
        validate(Group, {"low": 5})


@pytest.mark.parametrize("values", [[1, 2], "text", 3, None])
def test_values_that_are_no_mapping(values: object) -> None:
    assert "is not allowed" in error_of(values)


def test_many_errors_are_cut() -> None:
    wrong = {f"unknown_{i}": i for i in range(50)}
    assert len(error_of(wrong).splitlines()) == MAX_ERROR_LINES


def test_numbers_written_as_text_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("share: 1e-3\ngroup: {learning_rate: 2e-1}\ncount: 1_0\n")
    plain = read_yaml(path)
    assert plain["share"] == "1e-3"  # YAML 1.1 wants a point in it
    assert validate(Options, plain) == Options(
        share=0.001, count=10, group=Group(learning_rate=0.2)
    )
    assert isinstance(validate(Options, {"share": 1}).share, float)
    assert isinstance(validate(Options, {"count": 3.0}).count, int)


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    options = Options(share=1e-7, limit=3, fast=True, group=Group(clip=None, low=-4))
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(dataclasses.asdict(options)))
    assert validate(Options, read_yaml(path)) == options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "must be a mapping of options, got list"),
        ("", "must be a mapping of options, got NoneType"),
        ("text", "must be a mapping of options, got str"),
        ("1: 2\n", "keys must be names, got 1"),
        ("on: 2\n", "keys must be names, got True"),
        ("a: [1, 2", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
        ("a: 2026-99-99", "not valid YAML"),
        ("a: \x01", "not valid YAML"),
        ("[" * 1000, "not valid YAML"),
    ],
)
def test_yaml_that_is_no_mapping_of_options(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml: ") as caught:
        read_yaml(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 1\n", "a.yaml: line 3: 'a' is given twice"),
        ("a:\n  b: {c: 1, c: 2}", "a.yaml: line 2: 'c' is given twice"),
        ("a: &x [1]\nb: *x", "a.yaml: line 2: aliases are not allowed"),
        ("a: &x {c: 1}\nb: {<<: *x}", "a.yaml: line 2: aliases are not allowed"),
        ("a: &x 1\n? *x\n: 2", "a.yaml: line 2: aliases are not allowed"),
        # PyYAML lets its own KeyError and AttributeError out here
        ("a: !!bool x", "a.yaml: not valid YAML"),
        ("a: !!timestamp x", "a.yaml: not valid YAML"),
    ],
)
def test_yaml_that_hides_a_mistake_or_grows(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml: ") as caught:
        read_yaml(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"count": "9" * 100_000},
        {"count": list(range(100_000))},
        {"name": {str(i): i for i in range(100_000)}},
        {"x" * 100_000: 1},
        {"mode": "x" * 100_000},
        {"group": {"x" * 100_000: "y" * 100_000}},
        {"a\nb": 1},
        {"mode": "a\n\x1b[2Jb"},
        {"name": ["\n"]},
    ],
)
def test_messages_are_short_printable_lines(values: dict[str, Any]) -> None:
    message = error_of(values)
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize("value", [10**23, -(10**23), 2**53 + 1, float(2**60)])
def test_integers_that_no_counter_holds(value: float) -> None:
    assert error_of({"low": value, "high": value}).startswith("low: ")
    assert "must be at most 9007199254740992" in error_of({"limit": value})
    assert validate(Options, {"limit": 2**53}).limit == 2**53


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"binary\.yaml: not valid YAML"):
        read_yaml(tmp_path / "binary.yaml")
    with pytest.raises(ValueError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
        read_yaml(tmp_path)


def test_nearest_by_hand() -> None:
    assert nearest("encoder", "resnt", ["nature", "resnet"]) == (
        "encoder: 'resnt' is unknown; did you mean 'resnet'? (allowed: nature, resnet)"
    )
    assert nearest("encoder", "q", ["nature", "resnet"]) == (
        "encoder: 'q' is unknown (allowed: nature, resnet)"
    )


def flags(*argv: str, default: Options | None = None) -> Options:
    return parse_flags(Options, argv, default=default, prog="prog")


def test_flags_over_a_default() -> None:
    default = Options(count=9, group=Group(learning_rate=0.125))
    parsed = flags("--fast", "True", "--group.clip", "2e-1", "--mode", "large", default=default)
    assert parsed == Options(
        count=9, fast=True, mode="large", group=Group(learning_rate=0.125, clip=0.2)
    )
    assert flags("--group.clip", "None").group.clip is None
    assert flags() == Options()


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--cuont", "3"], ["cuont", "count"]),
        (["--group.learning-rte", "1"], ["learning-rte", "learning-rate"]),
        (["--count", "many"], ["count", "many"]),
        (["--count", "2.5"], ["count", "2.5"]),
        (["--count", "0"], ["count: 0 is not allowed: must be above 0"]),
        (["--share", "nan"], ["share: nan is not allowed"]),
        (["--mode", "medium"], ["mode", "medium", "small", "large"]),
        (["--fast", "maybe"], ["fast", "maybe"]),
        (["--count"], ["count"]),
        (["stray"], ["stray"]),
        (["--group.low", "5"], ["group.low: 5 is not allowed: must not exceed high (2)"]),
    ],
)
def test_wrong_flags_are_a_few_clear_lines(
    argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        flags(*argv)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert 1 <= len(message.splitlines()) <= 10
    assert parts[0] in message.splitlines()[0]  # what comes first on the screen says what is wrong
    assert not set("│╭╮╰╯─") & set(message)
    assert capsys.readouterr() == ("", "")


def test_help_shows_defaults_and_docs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        flags("--help", default=Options(count=42))
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for text in ("--count", "42", "How many.", "--group.learning-rate", "Share of the error"):
        assert text in shown


def test_no_class_of_a_user_is_changed() -> None:
    """Being read leaves no mark on a class, which may be a plug-in's own."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Inner:
        x: float = 0.0

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Outer:
        inner: Inner = Inner()

    before = {cls: dict(vars(cls)) for cls in (Inner, Outer)}
    with pytest.raises(ValueError, match=r"inner\.y: 'y' is unknown"):
        validate(Outer, {"inner": {"y": 1}})
    assert validate(Outer, {"inner": {"x": 2}}).inner.x == 2
    with pytest.raises(ValueError, match=r"inner\.x: inf is not allowed"):
        validate(Outer, {"inner": {"x": float("inf")}})
    assert {cls: dict(vars(cls)) for cls in (Inner, Outer)} == before


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wordy:
    """Options with long docstrings."""

    alpha: int = 1
    """The first line of this docstring is long, and the second line
    goes on within the same sentence
    (as does the third, which begins with a bracket)."""
    beta: int = 2
    """A list:

    - one
    - two
    """


def test_help_fills_its_lines_however_docstrings_are_broken(capsys):
    with pytest.raises(SystemExit):
        parse_flags(Wordy, ["--help"], prog="wordy")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    begin = next(i for i, line in enumerate(lines) if "The first line" in line)
    end = next(i for i, line in enumerate(lines) if "(default: 1)" in line)
    assert end - begin >= 1
    for line, following in itertools.pairwise(lines[begin : end + 1]):
        assert len(line) + 1 + len(following.split()[0]) > 79, "the next word would have fitted"
    assert any(line.strip() == "- one" for line in lines)


def test_help_writes_or_none_behind_the_type(capsys):
    @dataclasses.dataclass
    class Optional:
        path: Path | None = None
        """Where."""

    with pytest.raises(SystemExit):
        parse_flags(Optional, ["--help"], prog="prog")
    out = capsys.readouterr().out
    assert "--path PATH|None" in out
    assert "{None}" not in out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optional_:
    number: Annotated[float, Gt(0)] | None = 1.0
    text: str | None = "a"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    group: Optional_ = dataclasses.field(default_factory=Optional_)


@pytest.mark.parametrize("word", ["none", "None", "null"])
def test_none_is_written_in_every_usual_way(word):
    assert validate(Outer, {"group": {"number": word}}).group.number is None
    for flags in (["--group.number", word], [f"--group.number={word}"]):
        assert parse_flags(Outer, flags, prog="x").group.number is None
    assert validate(Outer, {"group": {"text": word}}).group.text == word, "text may be anything"
