"""The program of a worker process that compares answers with math-verify; run as a script, never imported.

It reads one JSON list `[seconds, answer, gold]` a line and writes one JSON line each: a verdict. Nothing of this
package is imported, so that a worker starts fast and holds no threads. math-verify's own time-outs (signal.alarm, which
code in C holds up) are off: whoever runs the worker kills it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import Any, TextIO

_MEMORY_BYTES = 4 * 2**30
_CPU_MARGIN_SECONDS = 5


def _limit(kind: str, value: int) -> None:
    """Set a soft limit of this process where the system has it; the second line of defence after the kill."""
    try:
        import resource

        limit = getattr(resource, kind)
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    except (ImportError, AttributeError, ValueError, OSError):
        return


def _to_latex(text: str) -> str:
    """Turn plain powers into LaTeX: `2**(n+1)` and `2^(n+1)` into `2^{n+1}`."""
    signs = list(text.replace("**", "^"))
    opened: list[int] = []
    for i, sign in enumerate(signs):
        if sign == "(":
            opened.append(i)
        elif sign == ")" and opened:
            start = opened.pop()
            if start and signs[start - 1] == "^":
                signs[start], signs[i] = "{", "}"
    return "".join(signs)


def _expressions(text: str) -> list[Any]:
    """Sympy objects that the whole text states; empty where math-verify reads none."""
    from math_verify import LatexExtractionConfig, parse

    latex = " ".join(_to_latex(text).replace(r"\$", "").replace("$", "").split()).rstrip("\\")
    found = parse(f"${latex}$", [LatexExtractionConfig()], parsing_timeout=None, raise_on_error=True)
    return [expression for expression in found if not isinstance(expression, str)]


def _compare(answer: str, gold: str) -> str:
    from math_verify import verify

    try:
        wanted = _expressions(gold)
    except Exception:
        wanted = []
    if not wanted:
        return "wrong"  # the gold answer is no mathematics, and an answer written the same never comes here
    try:
        stated = _expressions(answer)
        if not stated:
            return "unparsed"
        same = verify(wanted, stated, timeout_seconds=None, allow_set_relation_comp=True, raise_on_error=True)
    except MemoryError:
        raise
    except Exception:
        return "unparsed"  # the answer makes math-verify fail: it was not understood
    return "correct" if same else "wrong"


def _serve(requests: TextIO, replies: TextIO) -> None:
    for line in requests:
        seconds, answer, gold = json.loads(line)
        _limit("RLIMIT_CPU", int(sum(os.times()[:2]) + seconds) + _CPU_MARGIN_SECONDS)  # ends it if its owner is dead
        replies.write(json.dumps(_compare(answer, gold)) + "\n")
        replies.flush()


def main() -> None:
    """Answer requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not look like a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner, which then closes the input
    logging.disable(logging.CRITICAL)
    _limit("RLIMIT_AS", _MEMORY_BYTES)
    _limit("RLIMIT_CORE", 0)
    try:
        import math_verify  # noqa: F401
    except Exception as error:
        greeting = f"{type(error).__name__}: {error}"
    else:
        greeting = "ready"
    replies.write(json.dumps(greeting) + "\n")
    replies.flush()
    _serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
