"""From texts to tokens: a problem's prompt, its K branches and the gold answer (docs/definitions.md, Text to tokens).

Prompt, reasoning and answer segment are tokenised separately and concatenated, so that the same answer gives the
same tokens after every rationale. What is trained on is known from construction; nothing is searched for.

Shape letters: K teachers, R reasoning tokens; positions and lengths are in tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any

import regex

from compact_distill.answers import FoundAnswer, Verifier, answers_of, places_in, split_answer
from compact_distill.config.models import MAX_LENGTH, TextConfig
from compact_distill.data.write import ProblemSize
from compact_distill.errors import DataError, StudentError
from compact_distill.records import AnswerFrom, Instance, Rationale, RationaleStatus, Verdict
from compact_distill.students.load import tokenizer_problems
from compact_distill.students.prompt import (
    TokenCounter,
    names_special_token,
    prompt_text,
    prompt_tokens,
    tokens_around,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEXICON: tuple[str, ...] = (
    "therefore", "thus", "hence", "so", "consequently", "wait", "but", "however", "although", "first", "second",
    "finally", "specifically", "in summary", "basically", "let", "assuming", "suppose", "hmm", "okay", "note",
)  # fmt: skip

# The first word of the text, of a line, and of a sentence (after . ! or ? and white space).
_STARTS = re.compile(r"(?:\A|(?<=\n)|(?<=[.!?]\s))[^\S\n]*(\S+)")


@dataclass(frozen=True, slots=True)
class Branch:
    """One rationale as tokens: completion = reasoning + answer segment + eos.

    `thinking` marks the reasoning tokens that belong to a thinking expression; `stops` are the reasoning lengths
    right after each thinking expression (1..R, rising), where the probe estimator may stop. `steps` are the reasoning
    tokens at which its sentences and lines start, the first one at 0.
    """

    reasoning: tuple[int, ...]
    answer: tuple[int, ...]
    eos: int
    thinking: tuple[bool, ...]
    stops: tuple[int, ...]
    steps: tuple[int, ...] = ()

    @property
    def completion(self) -> tuple[int, ...]:
        """All tokens behind the prompt: reasoning, answer segment, eos."""
        return (*self.reasoning, *self.answer, self.eos)

    def __len__(self) -> int:
        return len(self.reasoning) + len(self.answer) + 1


@dataclass(frozen=True, slots=True)
class EncodedProblem:
    """A problem as tokens: K branches that share a prompt; a rationale that does not take part has branch None.

    `gold` is the gold answer's segment; its tokens `gold[gold_start:gold_stop]` are the answer itself. What weight
    rules ask for beyond tokens, one entry a teacher: `verdicts` says whether its answer is right (None: nobody looked),
    `agreement` is the share of the other present rationales whose answer is equivalent (empty: nobody looked), and
    `given` is the data's own `weight`.
    """

    id: str
    teachers: tuple[str, ...]
    prompt: tuple[int, ...]
    branches: tuple[Branch | None, ...]
    statuses: tuple[RationaleStatus, ...]
    gold: tuple[int, ...]
    gold_start: int
    gold_stop: int
    answers: tuple[str | None, ...] = ()  # the rationales' final answers, and where they were found
    answers_from: tuple[AnswerFrom | None, ...] = ()
    verdicts: tuple[Verdict | None, ...] = ()
    agreement: tuple[float, ...] = ()
    given: tuple[Any, ...] = ()

    @property
    def present(self) -> tuple[int, ...]:
        """Indices of the teachers whose rationale takes part."""
        return tuple(k for k, branch in enumerate(self.branches) if branch is not None)

    @property
    def size(self) -> int:
        """Tokens of the prompt and of all present completions."""
        return len(self.prompt) + sum(len(branch) for branch in self.branches if branch is not None)

    @property
    def right(self) -> tuple[int, ...]:
        """Indices of the present teachers whose answer is known to be right."""
        return tuple(k for k in self.present if self.verdicts and self.verdicts[k] is Verdict.CORRECT)

    @property
    def gold_tokens(self) -> tuple[int, ...]:
        """The gold answer's tokens, without the answer segment's prefix and end."""
        return self.gold[self.gold_start : self.gold_stop]


_MEASURED_TOGETHER = 256
_PATTERN_SECONDS = 5.0  # for an expression to get through one rationale
# How reasoning and answer segment are tokenised: a special token that a model or user wrote out stays text.
_PIECE: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": True}


class Encoder:
    """Turns instances into tokens for one tokenizer.

    Args:
        tokenizer: a fast tokenizer (character offsets are needed) with an eos token.
        text: templates of prompt and answer segment.
        max_length: most tokens of prompt + completion; a longer rationale is dropped and counted, never cut.
        thinking_expressions: regular expressions besides the default lexicon.
        infer: whether an answer that is not stated may be inferred (`answers_of`).

    Raises:
        StudentError: the tokenizer has no eos token or gives no offsets.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: TextConfig | None = None,
        max_length: int = MAX_LENGTH,
        thinking_expressions: Iterable[str] = (),
        infer: bool = True,
    ) -> None:
        wrong = tokenizer_problems(tokenizer)
        if wrong:
            raise StudentError(wrong)
        self.tokenizer = tokenizer
        self.text = text or TextConfig()
        self.max_length = max_length
        self.thinking_expressions = tuple(thinking_expressions)
        self.infer = infer
        self._count_piece = TokenCounter(tokenizer, keeps_special=False)  # as in _PIECE
        self._count_prompt = TokenCounter(tokenizer, keeps_special=True)

    def __call__(self, instance: Instance, verifier: Verifier | None = None) -> EncodedProblem:
        """Encode one problem; with a `verifier`, answers are compared with the gold answer and with each other.

        A verdict that the data brings stands.

        Raises:
            DataError: the gold answer has no tokens of its own.
        """
        prompt = self.encode_prompt(instance.question)
        gold, gold_start, gold_stop = self._encode_gold(instance)
        branches: list[Branch | None] = []
        statuses: list[RationaleStatus] = []
        found = self._found(instance)
        for rationale, split in zip(instance.rationales, found, strict=True):
            branch, status = self._encode_rationale(rationale, split, len(prompt))
            branches.append(branch)
            statuses.append(status)
        problem = EncodedProblem(
            id=instance.id,
            teachers=instance.teachers,
            prompt=prompt,
            branches=tuple(branches),
            statuses=tuple(statuses),
            gold=gold,
            gold_start=gold_start,
            gold_stop=gold_stop,
            answers=tuple(split.answer for split in found),
            answers_from=tuple(split.source for split in found),
            verdicts=tuple(rationale.verdict for rationale in instance.rationales),
            given=tuple(rationale.extra.get("weight") for rationale in instance.rationales),
        )
        return problem if verifier is None else _compared(problem, instance, verifier)

    def encode_all(self, instances: Iterable[Instance], verifier: Verifier | None = None) -> Iterator[EncodedProblem]:
        """Encode problems one after the other, in order; see `__call__`."""
        return (self(instance, verifier) for instance in instances)

    def measure(self, instances: Iterable[Instance]) -> Iterator[ProblemSize]:
        """What `encode_all` would give, counted only, and several times as fast: for a look before training."""
        left = iter(instances)
        while chunk := list(islice(left, _MEASURED_TOGETHER)):
            yield from self._measure(chunk)

    def _measure(self, instances: Sequence[Instance]) -> Iterator[ProblemSize]:
        before, after = self._answer_sentence()
        found = [self._found(instance) for instance in instances]
        pieces = dict.fromkeys(  # each text once: answers are often the same
            text
            for splits in found
            for split in splits
            if split.answer is not None
            for text in (self._lead(split.reasoning) + split.reasoning, f"{before}{split.answer}{after}")
        )
        length_of = dict(zip(pieces, self._count_piece(list(pieces)), strict=True))
        prompts = self._prompt_lengths([instance.question for instance in instances])
        for instance, splits, prompt in zip(instances, found, prompts, strict=True):
            lengths: list[int | None] = []
            statuses: list[RationaleStatus] = []
            for rationale, split in zip(instance.rationales, splits, strict=True):
                length = None
                if not rationale.text.strip():
                    status = _absent(rationale)
                elif split.answer is None:
                    status = split.status
                else:
                    reasoning = self._lead(split.reasoning) + split.reasoning
                    length = length_of[reasoning] + length_of[f"{before}{split.answer}{after}"] + 1  # and eos
                    fits = prompt + length <= self.max_length
                    status = RationaleStatus.OK if fits else RationaleStatus.OVER_LENGTH
                    length = length if fits else None
                lengths.append(length)
                statuses.append(status)
            sources = tuple(split.source for split in splits)
            yield ProblemSize(instance.teachers, tuple(statuses), sources, prompt, tuple(lengths))

    def encode_prompt(self, question: str) -> tuple[int, ...]:
        """Tokens of the prompt: the chat template with a generation prompt, else the prompt template."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template:
            return prompt_tokens(
                tokenizer, self.text.messages(question), self.text.template_options, self.text.close_thinking
            )
        prompt = self.text.prompt_template.replace("{question}", question)
        ids = tokens_around(tokenizer, prompt, [question], add_special_tokens=True)
        if not ids:
            raise DataError(f"prompt of question {question!r} has no tokens; check text.prompt_template")
        return ids

    def _prompt_lengths(self, questions: Sequence[str]) -> list[int]:
        """Lengths of `encode_prompt`, in one call where the chat template alone writes special tokens."""
        tokenizer, text = self.tokenizer, self.text
        asked = [text.messages(question) for question in questions]
        written = "\n".join(message["content"] for messages in asked for message in messages)
        if not tokenizer.chat_template or names_special_token(tokenizer, written):
            return [len(self.encode_prompt(question)) for question in questions]
        prompts = [prompt_text(tokenizer, each, text.template_options, text.close_thinking) for each in asked]
        return self._count_prompt(prompts)

    def _found(self, instance: Instance) -> list[FoundAnswer]:
        """Reasoning and answer of each rationale; where the text is the answer itself, there is no reasoning."""
        if self.text.rationale == "reasoning":
            return answers_of(instance, self.infer)
        texts = [rationale.text.strip() for rationale in instance.rationales]
        return [FoundAnswer("", text or None, AnswerFrom.STATED if text else None) for text in texts]

    def _answer_sentence(self) -> tuple[str, str]:
        """What stands before and after an answer in its segment."""
        if self.text.rationale == "answer":  # it follows the prompt as a reasoning does
            return self._lead("answer"), ""
        before, after = self.text.answer_template.split("{answer}")
        return f"\n{before}", after

    def _encode_gold(self, instance: Instance) -> tuple[tuple[int, ...], int, int]:
        before, after = self._answer_sentence()
        start = len(before)
        stop = start + len(instance.answer)
        ids, offsets = self._encode_piece(f"{before}{instance.answer}{after}")
        inside = [t for t, (a, b) in enumerate(offsets) if a < stop and b > start]
        if not inside:
            raise DataError(f"problem {instance.id!r}: gold answer {instance.answer!r} has no tokens; mend the answer")
        return ids, inside[0], inside[-1] + 1

    def _encode_rationale(
        self, rationale: Rationale, found: FoundAnswer, prompt_length: int
    ) -> tuple[Branch | None, RationaleStatus]:
        if not rationale.text.strip():
            return None, _absent(rationale)
        if found.answer is None:
            return None, found.status
        before, after = self._answer_sentence()
        answer_ids, _ = self._encode_piece(f"{before}{found.answer}{after}")
        lead = self._lead(found.reasoning)
        reasoning_ids, offsets = self._encode_piece(lead + found.reasoning)
        spans = thinking_spans(found.reasoning, self.thinking_expressions)  # `^` is where the teacher's text starts
        thinking, stops = _mark_thinking([(a + len(lead), b + len(lead)) for a, b in spans], offsets)
        steps = _step_starts(lead + found.reasoning, offsets)
        branch = Branch(reasoning_ids, answer_ids, self.tokenizer.eos_token_id, thinking, stops, steps)
        if prompt_length + len(branch) > self.max_length:
            return None, RationaleStatus.OVER_LENGTH
        return branch, RationaleStatus.OK

    def reasoning_spans(self, text: str) -> list[tuple[int, int]]:
        """Characters of a rationale's text that each token of its reasoning stands for, as (start, end)."""
        reasoning = split_answer(text)[0] if self.text.rationale == "reasoning" else ""
        lead = self._lead(reasoning)
        _, offsets = self._encode_piece(lead + reasoning)
        places = places_in(text, reasoning)
        return [(places[max(start - len(lead), 0)], places[max(end - len(lead), 0)]) for start, end in offsets]

    def _lead(self, reasoning: str) -> str:
        """The space that parts a reasoning from a prompt without chat markup."""
        return " " if reasoning and not self.tokenizer.chat_template else ""

    def _encode_piece(self, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        if not text:
            return (), []
        encoded = self.tokenizer(text, **_PIECE, return_offsets_mapping=True)
        return tuple(encoded["input_ids"]), encoded["offset_mapping"]


def _compared(problem: EncodedProblem, instance: Instance, verifier: Verifier) -> EncodedProblem:
    """The problem with verdicts and agreement; a rationale that takes no part has no verdict and agreement 0."""
    answers = {k: problem.answers[k] or "" for k in problem.present}
    unknown = [k for k in answers if problem.verdicts[k] is None]
    pairs = [(i, j) for i, j in combinations(answers, 2) if answers[i] != answers[j]]
    asked = [(answers[k], instance.answer) for k in unknown] + [(answers[i], answers[j]) for i, j in pairs]
    found = verifier.verify_many(asked)
    verdicts = dict(enumerate(problem.verdicts)) | dict(zip(unknown, found, strict=False))
    differ = {pair for pair, verdict in zip(pairs, found[len(unknown) :], strict=True) if verdict != Verdict.CORRECT}
    same = [sum((min(i, k), max(i, k)) not in differ for i in answers if i != k) for k in range(len(problem.branches))]
    others = max(len(answers) - 1, 1)
    agreement = tuple(count / others if k in answers else 0.0 for k, count in enumerate(same))
    return replace(problem, verdicts=tuple(verdicts.values()), agreement=agreement)


def _absent(rationale: Rationale) -> RationaleStatus:
    """Why a rationale has no text: as the data says (rejected, truncated ...), else it is missing."""
    said = str(rationale.extra.get("status"))
    known = said in list(RationaleStatus) and said != RationaleStatus.OK
    return RationaleStatus(said) if known else RationaleStatus.MISSING


def _step_starts(text: str, offsets: list[tuple[int, int]]) -> tuple[int, ...]:
    """The tokens at which sentences and lines start; what comes before the first word belongs to the first step."""
    words = [m.start(1) for m in _STARTS.finditer(text)]
    starts = {next((t for t, (_, stop) in enumerate(offsets) if stop > word), len(offsets)) for word in words[1:]}
    return (0, *sorted(starts - {0, len(offsets)})) if offsets else ()


def _mark_thinking(
    spans: list[tuple[int, int]], offsets: list[tuple[int, int]]
) -> tuple[tuple[bool, ...], tuple[int, ...]]:
    """Map character spans to tokens: a mask of the tokens that overlap one, and the lengths right after each."""
    thinking = [False] * len(offsets)
    stops: set[int] = set()
    first = 0
    for start, stop in sorted(spans):
        while first < len(offsets) and offsets[first][1] <= start:
            first += 1
        last = first
        while last < len(offsets) and offsets[last][0] < stop:
            thinking[last] = True
            last += 1
        if last > first:
            stops.add(last)
    return tuple(thinking), tuple(sorted(stops))


# Apart from the user's: in one alternation `let` would hide a user's `let me check`, and group numbers would shift.
_SPACE, _SPACES = r"\ ", r"\s+"
_WORDS = re.compile(rf"\b(?:{'|'.join(re.escape(word).replace(_SPACE, _SPACES) for word in LEXICON)})\b", re.IGNORECASE)


@lru_cache(maxsize=16)
def _patterns(extra: tuple[str, ...]) -> tuple[Any, ...]:
    # The `regex` package, for it can give up: a stranger's pattern may need years for a text.
    return tuple(regex.compile(pattern, regex.IGNORECASE) for pattern in extra)


def thinking_spans(text: str, extra: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Return the (start, end) character spans of thinking expressions in `text`, in order; they may overlap.

    An expression is a word of `LEXICON` (whole words, any case) or a match of a regular expression of `extra`
    (any case). A text without one gets the first words of its sentences and lines instead (docs/definitions.md).

    Raises:
        DataError: an expression does not get through the text within five seconds.
    """
    spans = {match.span() for match in _WORDS.finditer(text)}
    for pattern in _patterns(tuple(extra)):
        try:
            found = pattern.finditer(text, timeout=_PATTERN_SECONDS)
            spans.update(match.span() for match in found if match.end() > match.start())
        except TimeoutError:
            raise DataError(
                f"thinking_expressions: {pattern.pattern!r} must get through a rationale within {_PATTERN_SECONDS:g} "
                f"seconds, but not through {text!r:.60}; write it without nested repetitions"
            ) from None
    return sorted(spans) or [m.span(1) for m in _STARTS.finditer(text)]
