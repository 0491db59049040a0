"""What a reasoning model thought, apart from what it said."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def split(text: str, reasoning: str = "") -> tuple[str, str]:
    """Return (reasoning, text): what stands in `<think>` tags, or came in a field of its own, is reasoning.

    Chat templates often write the opening tag themselves, so a closing tag alone ends the reasoning that began with
    the text. An opening tag that is never closed was cut off: all after it is reasoning, and nothing more was said.
    """
    thoughts, said = [reasoning], ""
    while CLOSE in text:
        before, text = text.split(CLOSE, 1)
        shown, opened, thought = before.partition(OPEN)
        if opened:
            said += shown
        else:
            said, thought = "", said + before
        thoughts.append(thought)
    shown, _, thought = text.partition(OPEN)
    thoughts.append(thought)
    return "\n".join(t.strip() for t in thoughts if t.strip()), (said + shown).strip()
