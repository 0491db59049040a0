"""What each layer's attention needs to know about a row of segments.

Shapes: T rows of the row (queries) or of everything that can be seen (keys), H query heads, G key heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compact_distill.method.packing import Layout, Segment


class Part(NamedTuple):
    """Queries that read keys: rows of both, and whether they are one segment, which reads itself causally."""

    queries: slice
    keys: slice
    causal: bool


@dataclass
class AttentionPlan:
    """What each layer's attention needs to know about a row.

    Attributes:
        segments: all segments whose keys can be seen: first those remembered from an earlier pass, then the row's own.
        first: index of the row's first own segment.
        memory: keys and values of the remembered segments by layer, each [1, H, T, D]; filled where `remember` is set.
        remember: store each layer's keys and values (detached) in `memory` as the row passes.
    """

    segments: list[Segment]
    first: int = 0
    memory: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    remember: bool = False
    _cache: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: Layout, remember: bool = False) -> AttentionPlan:
        """Plan for a row that stands alone."""
        return cls(layout.segments, remember=remember)

    @property
    def own(self) -> list[Segment]:
        return self.segments[self.first :]

    def mask(self, segment: Segment, window: int | None, device: torch.device) -> Tensor:
        """Which keys (context, then own) each of a segment's queries sees, by position: bool [length, T]."""
        key = (segment.length, segment.position, window, device)
        if key not in self._cache:
            query = torch.arange(segment.position, segment.position + segment.length, device=device)[:, None]
            keys = torch.arange(segment.position + segment.length, device=device)[None, :]
            seen = keys <= query
            self._cache[key] = seen if window is None else seen & (query - keys < window)
        return self._cache[key]

    @cached_property
    def longest(self) -> int:
        """Most tokens that one query sees."""
        return max(segment.position + segment.length for segment in self.own)

    @cached_property
    def parts(self) -> list[Part]:
        """The row's attention as (query rows, key rows, whether they are the same segment and so causal).

        Each segment first reads itself; then adjoining segments that see the same rows read those together.
        """
        offset = self.own[0].start
        own = [Part(slice(s.start - offset, s.stop - offset), slice(s.start, s.stop), True) for s in self.own]
        shared: dict[tuple[int, int], list[slice]] = {}
        for segment, part in zip(self.own, own, strict=True):
            for index, seen in segment.context:
                start = self.segments[index].start
                runs = shared.setdefault((start, start + seen), [])
                if runs and runs[-1].stop == part.queries.start:
                    runs[-1] = slice(runs[-1].start, part.queries.stop)
                else:
                    runs.append(part.queries)
        return own + [Part(run, slice(*keys), False) for keys, runs in shared.items() for run in runs]

    @cached_property
    def gather(self) -> list[int]:
        """Rows of the keys that the own segments see, segment after segment: context, then own."""
        rows: list[int] = []
        for segment in self.own:
            for index, seen in segment.context:
                start = self.segments[index].start
                rows.extend(range(start, start + seen))
            rows.extend(range(segment.start, segment.stop))
        return rows
