"""From messages to a prompt: chat templates as models really bring them, and text that stays text.

A special token that is written out in a question or a rationale (`<|im_end|>`) is never the token: what users, teachers
and data write is tokenised as characters, and only the template's own marks are marks.
"""

from __future__ import annotations

import heapq
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from compact_distill.answers.stated import THINKING, closing_tag
from compact_distill.errors import StudentError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]

# The date for templates that write today's (Llama 3.2, SmolLM3): the one that Llama's write where they know none. With
# the clock's, a run that goes on tomorrow would read other prompts. Templates take no functions from outside, so it is
# theirs.
_DATE = {"%d": "26", "%m": "07", "%Y": "2024", "%y": "24", "%b": "Jul", "%B": "July", "%a": "Fri", "%A": "Friday"}
_TIME = {"%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM"}
_REPLACED = "".join(f" | replace('{sign}', '{text}')" for sign, text in (_DATE | _TIME).items())
# The empty expression at the end keeps a line break at the template's start.
_SAME_DAY = f"{{% macro strftime_now(format) %}}{{{{ format{_REPLACED} }}}}{{% endmacro %}}{{{{ '' }}}}"
_SECONDS = 20.0  # for a template to render once, the start of a process included
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS, _SIGNS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How Qwen (each digit alone) and Llama 3 (up to three) split a text before its words are looked up; GPT-2's way is
# built into `ByteLevel`. None of them has a match that starts at a sign and goes on over a space behind it.
_SPLITS_AT_SPACES = {f"{_CONTRACTIONS}|{_LETTERS}|{number}|{_SIGNS}" for number in (r"\p{N}", r"\p{N}{1,3}")}
# Words with the spaces before them. A word ends before a space where its last sign is white space to nobody.
_WORDS = re.compile(r" *[^ ]+(?:(?<![!-~\w]) +[^ ]*)*| +")
_CHARACTERS_KEPT = 20_000_000
_RESERVED = ("conversation", "messages", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict")
_LONG_TEXTS = 2000  # among which those with the longest words are looked for
_TRIED = 4
_TOKENISE = """
import json, sys
from tokenizers import Tokenizer
asked = json.loads(sys.stdin.read())
tokenizer = Tokenizer.from_str(asked["tokenizer"])
for number, text in enumerate(asked["texts"]):
    print(number, flush=True)
    tokenizer.encode(text)
"""
_PROGRAM = """
import json, sys
from transformers.utils.chat_template_utils import render_jinja_template
render_jinja_template(**json.loads(sys.stdin.read()))
"""


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, options: Mapping[str, Any] | None = None
) -> str:
    """Fill in the chat template, generation prompt included.

    A template that reads messages as lists of parts gets them so.

    Args:
        tokenizer: one with a chat template.
        messages: role and content of each.
        options: what the template takes (`enable_thinking: false`); `chat_template` chooses one of several by name.

    Raises:
        StudentError: the template raises, or leaves the last message out.
    """
    rendered = _render(tokenizer, messages, options)
    if not _holds(rendered, messages[-1]["content"]):
        parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
        rendered = _render(tokenizer, parts, options)
        if not _holds(rendered, messages[-1]["content"]) or "'type': 'text'" in rendered:  # the list itself, as text
            raise StudentError(
                f"chat template must put the question into the prompt, but {messages[-1]['content']!r:.80} is not in "
                f"{rendered!r:.200}; check `template_options`, or give the tokenizer another chat template"
            )
    return rendered


def prompt_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    options: Mapping[str, Any] | None = None,
    close_thinking: bool = False,
) -> str:
    """A rendered prompt (see `render_prompt`).

    `close_thinking` ends the thinking that a template's generation prompt opens, as reasoning models' own templates do
    where thinking is off.
    """
    rendered = render_prompt(tokenizer, messages, options)
    opened = _opened_thinking(rendered)
    if close_thinking and opened:
        rendered = f"{rendered.rstrip()}\n\n{closing_tag(opened)}\n\n"
    return rendered


def _opened_thinking(rendered: str) -> str | None:
    """The tag that opens thinking at the very end of a prompt, if one does."""
    written = len(rendered.rstrip())
    tags = THINKING.finditer(rendered, max(0, written - 80), written)
    return next((tag[0] for tag in tags if tag["opens"] and tag.end() == written), None)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a reply in the chat template; None without a template, or where no token of its own does.

    Base models that bring a chat template (Qwen2.5) have another eos: they write this one, and go on with a new turn.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "the question"}, {"role": "assistant", "content": "the reply"}]
    try:
        rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # what keeps a template from being used at all is told where prompts are rendered
        return None
    after = rendered.rpartition("the reply")[2].lstrip()
    marks = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    return next((marks[mark] for mark in sorted(marks, key=len, reverse=True) if after.startswith(mark)), None)


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    options: Mapping[str, Any] | None = None,
    close_thinking: bool = False,
) -> tuple[int, ...]:
    """Token ids of a prompt (see `prompt_text`)."""
    rendered = prompt_text(tokenizer, messages, options, close_thinking)
    return tokens_around(tokenizer, rendered, [message["content"].strip() for message in messages])


def tokens_around(
    tokenizer: PreTrainedTokenizerBase, prompt: str, written: Sequence[str], add_special_tokens: bool = False
) -> tuple[int, ...]:
    """Token ids of a prompt in which some texts, in their order, are what somebody wrote: no special token is in them.

    `add_special_tokens`: whether the prompt gets those that the tokenizer starts every text with (bos).
    """
    pieces = [prompt]
    for text in written:
        before, found, after = pieces[-1].partition(text) if names_special_token(tokenizer, text) else ("", "", "")
        pieces[-1:] = [before, text, after] if found else pieces[-1:]
    ids: list[int] = []
    for number, piece in enumerate(pieces):
        first = add_special_tokens and number == 0
        if piece or first:
            ids += tokenizer(piece, add_special_tokens=first, split_special_tokens=number % 2 == 1)["input_ids"]
        if first and ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers end every text with eos
            ids.pop()
    return tuple(ids)


def names_special_token(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a special token of the tokenizer is written out in a text."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return any(str(token) in text for token in added if token.special)


def prompt_problems(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    options: Mapping[str, Any] | None = None,
    close_thinking: bool = False,
) -> list[str]:
    """Everything that keeps a chat template from being used, as messages; empty where it is fine or there is none.

    The template is a stranger's program: it is rendered first in a process that is killed after 20 seconds.
    """
    if not tokenizer.chat_template:
        return []
    wrong = [f"template_options must not hold {key!r}; it is set here" for key in _RESERVED if key in (options or {})]
    if wrong:
        return wrong
    slow = _render_apart(tokenizer, messages, options)
    if slow:
        return [slow]
    try:
        rendered = render_prompt(tokenizer, messages, options)
    except StudentError as error:
        return error.problems
    opened = _opened_thinking(rendered)
    if opened and not close_thinking:
        switch = "set `template_options: {enable_thinking: false}`, or " if _takes_thinking_switch(tokenizer) else ""
        return [
            f"chat template ends its generation prompt with {opened}, so a rationale would be learned as thinking "
            f"that never ends; {switch}set `text: {{close_thinking: true}}` to close it before the rationale"
        ]
    return []


def pattern_problems(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[str]:
    """What keeps a tokenizer's own regular expressions from getting through texts, as messages; empty where they do.

    They are a stranger's too, and may go back and forth for years, or end the process: the longest texts, and those
    with the longest words, are tokenised first in a process that is killed after 20 seconds.
    """
    written = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else ""
    if '"Regex"' not in written:
        return []
    tried = hardest(texts)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TOKENISE],
            input=json.dumps({"tokenizer": written, "texts": tried}),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        reached, how = done.stdout, None if done.returncode == 0 else "fails on"
    except subprocess.TimeoutExpired as error:
        reached, how = (error.stdout or b"").decode(), f"did not end within {_SECONDS:g} seconds on"
    if how is None:
        return []
    text = tried[int(reached.split()[-1])] if reached.split() else ""
    return [
        f"a regular expression of the tokenizer (tokenizer.json, pre_tokenizer or normalizer) {how} {text!r:.80}; "
        "give the student another tokenizer.json, or take such texts out of the data"
    ]


class TokenCounter:
    """Counts the tokens of texts; their ids never become lists, which costs a third of the time.

    Where a tokenizer splits every text at its spaces before anything else, a text has the tokens of its words, and
    each word is looked at once: most words of a data set come again and again.

    Args:
        tokenizer: a fast one.
        keeps_special: whether a special token that is written out in a text is that token, else characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, keeps_special: bool) -> None:
        self._tokenizer = tokenizer
        self._keeps_special = keeps_special
        self._by_words = splits_at_spaces(tokenizer)
        self._known: dict[str, int] = {}
        self._characters = 0

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, without any that the tokenizer puts around it."""
        if not self._by_words:
            return self._count(texts)
        words = [_WORDS.findall(text) for text in texts]
        if self._characters > _CHARACTERS_KEPT:
            self._characters = 0
            self._known.clear()
        new = list(set[str]().union(*words).difference(self._known))
        self._characters += sum(map(len, new))
        self._known.update(zip(new, self._count(new), strict=True))
        return [sum(map(self._known.__getitem__, each)) for each in words]

    def _count(self, texts: Sequence[str]) -> list[int]:
        # Sets what a special token is, and that nothing is cut or padded.
        self._tokenizer("", add_special_tokens=False, split_special_tokens=not self._keeps_special)
        encoded = self._tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(encoding) for encoding in encoded]


def splits_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a fast tokenizer gives a text the tokens of its words, each with the spaces before it, one by one.

    Known of the forms that GPT-2, Qwen and Llama 3 brought, with or without digits apart; not known of others, such as
    those that turn spaces into signs first.
    """
    backend = tokenizer.backend_tokenizer
    model, normalizer, splitter = backend.model, _state(backend.normalizer), _state(backend.pre_tokenizer)
    steps = [step for step in splitter.get("pretokenizers", [splitter]) if step.get("type") != "Digits"]
    first, *others = steps or [{}]
    known = first.get("pattern", {}).get("Regex") in _SPLITS_AT_SPACES and first["behavior"] == "Isolated"
    added = backend.get_added_tokens_decoder().values()
    return (
        (type(model).__name__ == "BPE" and not model.dropout)
        and normalizer.get("type") in (None, "NFC")
        and ((known and not first["invert"]) or bool(first.get("use_regex")))
        and all(step.get("type") == "ByteLevel" for step in others)
        and not any(step.get("add_prefix_space") for step in steps)
        and not any(" " in token.content or token.lstrip or token.rstrip or token.single_word for token in added)
    )


def _state(part: Any) -> dict[str, Any]:
    """What a tokenizer's file says of a part of it; empty where it has none."""
    return dict(json.loads(part.__getstate__())) if part is not None else {}


def hardest(texts: Iterable[str]) -> list[str]:
    """The longest texts, and those with the longest words: what a pattern takes longest for, if anything."""
    longest = heapq.nlargest(_LONG_TEXTS, texts, key=len)
    by_word = heapq.nlargest(_TRIED, longest, key=lambda text: max(map(len, text.split()), default=0))
    return list(dict.fromkeys((*longest[:_TRIED], *by_word)))


def _render(tokenizer: PreTrainedTokenizerBase, messages: Any, options: Mapping[str, Any] | None) -> str:
    options = dict(options or {})
    try:
        template = tokenizer.get_chat_template(options.pop("chat_template", None))
        if "strftime_now" in template:
            template = _SAME_DAY + template
        return str(
            tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=False, chat_template=template, **options
            )
        )
    except Exception as error:  # a template may raise anything
        raise StudentError(_said(error)) from error


def _said(error: Any) -> str:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    remedy = "set what it needs in `template_options`, or give the tokenizer another chat template"
    if "system" in text.lower():
        remedy = "write the message it asks for in `text: {system: ...}`, or leave out one it forbids"
    if "template" in text and "name" in text:
        remedy = "choose one: `template_options: {chat_template: NAME}`"
    return f"chat template cannot be filled in: {text}; {remedy}"


def _holds(rendered: str, text: str) -> bool:
    return " ".join(text.split()) in " ".join(rendered.split())


def _takes_thinking_switch(tokenizer: PreTrainedTokenizerBase) -> bool:
    return "enable_thinking" in str(tokenizer.chat_template)


def _render_apart(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, options: Mapping[str, Any] | None
) -> str | None:
    """Render once in a process of its own; a message where that does not end in time, else None."""
    options = dict(options or {})
    try:
        template = tokenizer.get_chat_template(options.pop("chat_template", None))
        request = json.dumps(
            {
                "conversations": [list(messages)],
                "chat_template": template,
                "add_generation_prompt": True,
                **{name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
                **options,
            }
        )
    except (ValueError, TypeError):
        return None  # told by the rendering that follows
    if ends_in_time(_PROGRAM, request):
        return None
    return (
        f"chat template did not end within {_SECONDS:g} seconds on {messages[-1]['content']!r:.60}; "
        "give the tokenizer another chat template"
    )


@lru_cache(maxsize=256)
def ends_in_time(program: str, request: str) -> bool:
    """Whether a program that gets `request` on its stdin ends within 20 seconds, in a process that is killed then.

    Whether it fails is not asked: that is told by doing the same here.
    """
    try:
        subprocess.run(
            [sys.executable, "-P", "-c", program], input=request, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False
    return True
