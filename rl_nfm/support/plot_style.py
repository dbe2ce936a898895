"""How lines are told apart in figures."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart, without the yellow, which no one can
see on white."""
LINE_STYLES = ("-", "--", "-.", ":")
"""They tell lines apart without any colour."""


def line_style(number: int) -> dict[str, str]:
    """Matplotlib's options for the line of a number; no two of 28 share colour and style."""
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": LINE_STYLES[number % len(LINE_STYLES)],
    }
