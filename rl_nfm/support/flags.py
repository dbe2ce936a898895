"""Command-line flags from dataclasses, parsed by tyro; each error becomes one line."""

import contextlib
import dataclasses
import inspect
import io
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

# private; pyproject.toml bounds the version, tests hold what is used of them
from tyro import _docstrings as tyro_docstrings
from tyro import _errors as tyro_errors

from rl_nfm.support.configuration import NONE_WORDS, may_be_none, short, validate
from rl_nfm.support.former import renamed_options
from rl_nfm.support.near import did_you_mean

T = TypeVar("T")
_BREAK = re.compile(r"(?<!\n)\n(?![\n*-])")
"""Between two lines of one paragraph that is no list."""
_OR_NONE = re.compile(r"\{None\}\|(\S+)")
"""tyro's way to write "a path, say, or None"; what takes its place in `--help` is as wide."""


def _pairs(words: list[str]) -> dict[str, float]:
    try:
        return {name: float(number) for name, number in zip(words[::2], words[1::2], strict=True)}
    except ValueError:
        text = " ".join(words)
        raise ValueError(
            f"{short(text)} is not allowed: must be NAME NUMBER NAME NUMBER ..."
        ) from None


PAIRS = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="[NAME NUMBER ...]",
    instance_from_str=_pairs,
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [str(part) for pair in value.items() for part in pair],
)
"""Annotates a field of names and numbers: one flag replaces them all.

Without, tyro makes a flag of each name that the default has, and then takes no others.
"""


class _Refused(Exception):
    """Carries an error message out of tyro's parser."""


def parse_flags(
    cls: type[T], argv: Sequence[str], *, default: T | None = None, prog: str, description: str = ""
) -> T:
    """Build a `cls` from flags on top of `default`; `--help` shows the values and docstrings.

    Raises:
        ValueError: a flag or value is unknown or not allowed; the message is one line.
        SystemExit: 0 after `--help`.
    """

    def refuse(event: tyro_errors.ParseErrorEvent) -> None:
        raise _Refused(_explain(event, cls))

    out = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(out),
            tyro_errors.on_parse_error(refuse),
            _docstrings_as_text(),
        ):
            parsed: Any = tyro.cli(
                cls,
                args=list(_with_none(cls, argv)),
                default=default,
                prog=prog,
                description=description,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except _Refused as refused:
        raise ValueError(str(refused)) from None
    except SystemExit:
        sys.stdout.write(_OR_NONE.sub(r"\1|None  ", out.getvalue()))
        raise
    return validate(cls, parsed)


def _with_none(cls: type, argv: Sequence[str]) -> Iterator[str]:
    """The words with "None", which is what tyro knows, for `none` and `null` of a flag."""
    optional = {flag for flag, hint in _hinted_flags(cls) if may_be_none(hint)}
    before = ""
    for word in argv:
        flag, equals, value = word.partition("=")
        if equals and _spelled(flag) in optional and value in NONE_WORDS:
            yield f"{flag}=None"
        else:
            yield "None" if word in NONE_WORDS and _spelled(before) in optional else word
        before = word


def _spelled(flag: str) -> str:
    return flag.replace("_", "-")


@contextlib.contextmanager
def _docstrings_as_text() -> Iterator[None]:
    """Inside, tyro sees each paragraph of a docstring as one line.

    It joins only lines that begin with a letter, so a docstring's indentation would break them.
    """
    read = tyro_docstrings.parse_docstring_from_object

    def cleaned(owner: object) -> dict[str, str]:
        texts = {name: inspect.cleandoc(text) for name, text in read(owner).items()}
        return {name: _BREAK.sub(" ", text) for name, text in texts.items()}

    tyro_docstrings.parse_docstring_from_object = cleaned
    try:
        yield
    finally:
        tyro_docstrings.parse_docstring_from_object = read


def _explain(event: tyro_errors.ParseErrorEvent, cls: type) -> str:
    """One line that explains tyro's error."""
    if isinstance(event, tyro_errors.UnrecognizedArgs):
        return _unknown(event.tokens[0], cls)
    if isinstance(event, tyro_errors.InvalidChoice):
        choices = ", ".join(event.choices)
        return f"{_flag(event)}: {short(event.value)} is not allowed (allowed: {choices})"
    if isinstance(event, tyro_errors.BadValue):
        wanted = event.argument.lowered.nargs
        several = isinstance(wanted, int) and wanted > 1
        return f"{_flag(event)}: needs {f'{wanted} values' if several else 'a value'}"
    if isinstance(event, tyro_errors.MissingArgs):
        names = (missing.arg.display_name() for missing in event.missing_arguments)
        return f"{', '.join(names)}: must be given (see --help)"
    if isinstance(event, tyro_errors.InstantiationFailure):
        return _not_built(event)
    return f"{event.prog}: the options cannot be read together (see --help)"


def _unknown(word: str, cls: type) -> str:
    flag = word.split("=")[0]
    if not flag.startswith("--"):
        return f"{short(word)}: not expected here; options begin with -- (see --help)"
    renamed = renamed_options(cls)
    if (new := renamed.get(flag.removeprefix("--").replace("-", "_"))) is not None:
        return f"{flag} is now --{new.replace('_', '-')}"
    hint = did_you_mean(flag.replace("_", "-"), _flags(cls), quoted=False)
    return f"{flag}: unknown option{hint} (--help lists all)"


def _flags(cls: type) -> Iterator[str]:
    """Every flag of a dataclass, one per field."""
    return (flag for flag, _ in _hinted_flags(cls))


def _hinted_flags(cls: type, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """Every flag with the type of its field."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name.replace("_", "-"), hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _hinted_flags(hint, f"{name}.")
        else:
            yield name, hint


def _flag(event: tyro_errors.InvalidChoice | tyro_errors.BadValue) -> str:
    return event.argument.display_name()


_WORDS_FOR_TYPES = {"int": "an integer", "float": "a number", "{none}": "none"}
_NO_UNION = re.compile(r"no type matching (\S+) could be instantiated from \['(.*)'\]")
_NO_SEQUENCE = re.compile(r"Could not find valid parse for arguments: \['(.*)'\]")
_NO_NUMBER = re.compile(r"(invalid literal for|could not convert string to) (\w+).*: '(.*)'$")


def _not_built(event: tyro_errors.InstantiationFailure) -> str:
    """The message for text that is not a number, or for a value that a dataclass refused."""
    message = event.message.strip().splitlines()[0]
    if event.argument is None:
        # The event does not name the group of options, but the error that caused it does.
        group = getattr(sys.exception(), "arg", None)
        return f"{group}.{message}" if isinstance(group, str) and group else message
    if found := _NO_NUMBER.search(message):
        kind = _WORDS_FOR_TYPES.get(found[2], found[2])
        message = f"{short(found[3])} is not allowed: must be {kind}"
    elif found := _NO_UNION.search(message):
        kinds = (_WORDS_FOR_TYPES.get(kind.lower(), kind) for kind in found[1].split("|"))
        message = f"{short(found[2])} is not allowed: must be {' or '.join(kinds)}"
    elif found := _NO_SEQUENCE.search(message):
        text, allowed = found[1].replace("', '", " "), event.argument.lowered.metavar
        message = f"{short(text)} is not allowed: must be {allowed}"
    return f"{event.argument.display_name()}: {message}"
