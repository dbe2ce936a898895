"""How much an NFM's attention matters to an agent at play, in numbers.

The paper's ablation replaces the scores by noise; before that, these say where attention is even,
goes to the null slot, or is added with so small a gain that nothing could depend on it.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from agents.playing.attention_pictures import reader_name, source_name
from rl_nfm.nfm.record import ReaderAttention, Source


@dataclasses.dataclass
class _Sums:
    gain: float
    sources: tuple[Source, ...]
    count: int = 0
    entropy: float = 0.0
    relative_size: float = 0.0
    shares: Tensor | float = 0.0


class AttentionUse:
    """Means over all forwards that were added."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}

    def add(self, readers: Iterable[ReaderAttention]) -> None:
        """Count what the readers of one forward attended to."""
        for reader in readers:
            first = _Sums(gain=reader.gain, sources=reader.sources)
            sums = self._sums.setdefault(reader_name(reader), first)
            sums.count += 1
            sums.entropy += reader.entropy()
            sums.relative_size += reader.relative_size
            sums.shares = sums.shares + reader.by_source().flatten(0, -2).mean(dim=0)

    def rows(self) -> list[dict[str, Any]]:
        """For each reader in the order of reading: gain, size, entropy, and its shares by source.

        `relative_size` and `entropy` are those of `ReaderAttention`; `shares` add up to 1, by the
        names that written layers and the null slot have in the pictures.
        """
        return [_row(name, sums) for name, sums in self._sums.items()]


def _row(name: str, sums: _Sums) -> dict[str, Any]:
    shares = torch.as_tensor(sums.shares) / sums.count
    named = zip(sums.sources, shares, strict=True)
    return {
        "reader": name,
        "gain": sums.gain,
        "relative_size": sums.relative_size / sums.count,
        "entropy": sums.entropy / sums.count,
        "shares": {source_name(source): float(share) for source, share in named},
    }


def use_text(rows: Iterable[dict[str, Any]]) -> str:
    """A table of `AttentionUse.rows`."""
    lines = [f"{'attention of':24}{'gain':>8}{'size':>8}{'entropy':>9}{'null':>7}  most read"]
    for row in rows:
        written = {name: share for name, share in row["shares"].items() if name != "null"}
        most = max(written, key=lambda name: written[name])
        null = row["shares"].get("null")
        lines.append(
            f"  {row['reader']:22}{row['gain']:8.3f}{row['relative_size']:8.3f}"
            f"{row['entropy']:9.2f}{'-' if null is None else f'{null:.2f}':>7}"
            f"  {most} ({written[most]:.2f})"
        )
    return "\n".join(lines)
