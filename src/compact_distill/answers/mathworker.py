"""The program of a worker process that compares answers with math-verify; run as a script, never imported.

It reads one JSON list `[seconds, answer, gold]` a line and writes one JSON line each: a verdict. Nothing of this
package is imported, so that a worker starts fast and holds no threads. math-verify's own time-outs (signal.alarm, which
code in C holds up) are off: whoever runs the worker kills it.
"""

from __future__ import annotations

import json
import logging
import os
import re
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


_NAME = re.compile(
    r"\s*(?:\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?(?:\([a-z]\))?|(?:\\left)?\(\s*[a-z](?:\s*,\s*[a-z])+\s*(?:\\right)?\))\s*"
)
_HUGE = 10**200


def _compare(answer: str, gold: str) -> str:
    answer, gold = _with_commas(answer), _with_commas(gold)
    equations = [re.split(r"(?<![<>!:=])=(?!=)", text) for text in (answer, gold)]
    if any(len(sides) == 2 for sides in equations) and all(len(sides) <= 2 for sides in equations):
        return _compare_equations(*equations)
    return _compare_values(*_in_one_shape(answer, gold))


def _with_commas(text: str) -> str:
    """`3 & 5` and `3; 5` are lists as `3, 5` is; rows of a matrix are none."""
    return text if "," in text or "\\begin" in text else re.sub(r"\s*(?:;|\\?&)\s*", ", ", text)


def _compare_equations(answer: list[str], gold: list[str]) -> str:
    """Two equations say the same up to a factor and sides; an equation says a value only as `x = value`."""
    if len(answer) == len(gold) == 2:
        if "".join(answer[0].split()) == "".join(gold[0].split()):
            return _compare_values(answer[1], gold[1])
        return _same_equation(answer, gold)
    equation, value = (answer, gold[0]) if len(answer) == 2 else (gold, answer[0])
    named = [side for side, other in zip(equation, reversed(equation), strict=True) if _NAME.fullmatch(other)]
    if not named and not re.search(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", equation[0]):
        named = [equation[1]]  # arithmetic: 3 * 6 = 18
    if not named:
        return "wrong"
    return _compare_values(named[-1], value) if len(answer) == 2 else _compare_values(value, named[-1])


def _same_equation(answer: list[str], gold: list[str]) -> str:
    from sympy import Expr, simplify

    found = []
    for sides in (answer, gold):
        read = []
        for side in sides:
            try:
                read += [e for e in _expressions(side) if isinstance(e, Expr)][:1]
            except MemoryError:
                raise
            except Exception:
                break
        found.append(read[0] - read[1] if len(read) == 2 else None)
    stated, wanted = found
    if wanted is None:
        return "wrong"
    if stated is None:
        return "unparsed"
    if wanted == 0 or stated == 0:
        return "correct" if wanted == stated else "wrong"
    factor = simplify(stated / wanted)
    return "correct" if factor.is_number and factor.is_finite and factor != 0 else "wrong"


def _in_one_shape(answer: str, gold: str) -> tuple[str, str]:
    """Bare lists in the brackets of the other: what a set holds has no order, what round brackets hold has one."""
    shapes = _shape(answer), _shape(gold)
    if shapes in (("list", "tuple"), ("list", "set")):
        answer = f"({answer})" if shapes[1] == "tuple" else rf"\{{{answer}\}}"
    elif shapes in (("tuple", "list"), ("set", "list")):
        gold = f"({gold})" if shapes[0] == "tuple" else rf"\{{{gold}\}}"
    return answer, gold


def _shape(text: str) -> str:
    """How several things are written: a set in braces, a tuple in round brackets, or a bare list; else nothing."""
    text = re.sub(r"\\(?:left|right)", "", text).replace(r"\{", "{").replace(r"\}", "}").strip()
    text = re.sub(r",?\s+(?:\\text\{\s*)?and\b\s*\}?\s*", ", ", text)
    depth, commas, closes_at = 0, [], -1
    for i, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and closes_at < 0:
            closes_at = i
        if sign == ",":
            commas.append(depth)
    if 0 in commas and not re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        return "list"
    whole = closes_at == len(text) - 1 and 1 in commas
    return {"(": "tuple", "{": "set"}.get(text[:1], "") if whole and text[-1:] in ")}" else ""


def _compare_values(answer: str, gold: str) -> str:
    from math_verify import verify

    if {_shape(answer), _shape(gold)} == {"set", "tuple"}:
        return "wrong"
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
        same = same and not _overflowed(wanted[0], stated[0])
    except MemoryError:
        raise
    except Exception:
        return "unparsed"  # the answer makes math-verify fail: it was not understood
    return "correct" if same else "wrong"


def _overflowed(wanted: Any, stated: Any) -> bool:
    """Whether two different numbers are so large that their floats are the same infinity."""
    if not (getattr(wanted, "is_number", False) and getattr(stated, "is_number", False)) or wanted == stated:
        return False
    return bool(abs(wanted) > _HUGE) and (wanted - stated).simplify() != 0


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
