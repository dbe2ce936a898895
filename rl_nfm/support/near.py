"""The hint that an unknown name is answered with. Loads nothing but the standard library."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, quoted: bool = True) -> str:
    """`; did you mean 'NEAREST'?`, to be put behind the name; empty where no known one is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    if not near:
        return ""
    return f"; did you mean {near[0]!r}?" if quoted else f"; did you mean {near[0]}?"
