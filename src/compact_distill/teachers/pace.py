"""How fast one teacher may be asked: requests and tokens per minute, evenly spread."""

from __future__ import annotations


class Pace:
    """Hands out starting times so that `amount` per minute is never passed; it allows no bursts.

    Providers measure over windows of their own, so only an even flow keeps within every one of them.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_second = per_minute / 60
        self._free_at = 0.0

    def reserve(self, amount: float, now: float) -> float:
        """Take `amount` and return how many seconds to wait before using it; who asks first goes first."""
        start = max(self._free_at, now)
        self._free_at = start + amount / self._per_second
        return start - now

    def correct(self, amount: float) -> None:
        """Take `amount` more (less, if negative): what was reserved was an estimate."""
        self._free_at += amount / self._per_second
