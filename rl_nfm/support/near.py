"""The hint for an unknown name. Imports only the standard library."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, quoted: bool = True) -> str:
    """`; did you mean 'NEAREST'?`, to append to a message; empty if no known name is similar."""
    names = list(known)
    near = [other for other in names if other.lower() == name.lower()]
    near = near or difflib.get_close_matches(name, names, n=1)
    if not near:
        return ""
    return f"; did you mean {near[0]!r}?" if quoted else f"; did you mean {near[0]}?"
