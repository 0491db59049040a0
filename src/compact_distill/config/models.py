"""The YAML a user writes, as typed models; docs/results.md says why a default is not the published one.

Every error of a file is reported at once; unknown and duplicate keys are errors that name the nearest valid key.
Relative paths start at the current folder, as everywhere on the command line. Nothing in a value is expanded.
This module imports neither torch nor transformers, so `compact --help` and `compact init` answer at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import regex
from pydantic import (
    AfterValidator,
    Field,
    StrictFloat,
    StrictInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.config.yaml import Strict

# The published runs' longest rationale, in tokens with its prompt, and what a student reads at once.
MAX_LENGTH = 2560
MAX_TOKENS_PER_PASS = 16384

# The published runs' settings (arXiv 2601.13992, section 4.1) but for the rate, and a checkpoint an epoch.
# At the published rate a student with LoRA moves hardly at all in 200 problems (docs/results.md); all weights keep it.
TRAIN_DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-4,
    "num_train_epochs": 5,
    # The published runs step after 4 problems, one at a time; as one batch they give the same gradient, faster.
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "save_strategy": "epoch",
    "save_total_limit": 2,
}
ALL_WEIGHTS_RATE = 1e-5
"""The default learning rate where there are no adapters."""
# Settings by name: `preset:` fills in what a file does not say. `paper` is the published runs' (arXiv 2601.13992, 4.1).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "weighting": "compact",
        "compatibility": {
            "consensus": 1.0,
            "adaptability": 1.0,
            "difficulty": 0.5,
            "temperature": 1.0,
            "estimator": "lens",
            "gain": "positive",
            "off_weight": 0.1,
            "pool": "last",
            "attention": "joint",
            "normalise": "problem",
        },
        "consistency": 0.1,
        "lora": {"r": 16, "alpha": 32.0, "dropout": 0.1},
        "max_length": 2560,
        "train": {
            "learning_rate": 1e-5,
            "num_train_epochs": 5,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
        },
    }
}

# A weight rule by name, or with an argument: {best: difficulty}. method/weights.py knows the rules.
Weighting = str | dict[str, Any]


def _without_tilde(path: str) -> str:
    if path.startswith("~"):
        raise ValueError(f"must not start with ~, which is not expanded here, got {path!r}; write the folder out")
    return path


OutputFolder = Annotated[str, Field(min_length=1), AfterValidator(_without_tilde)]
"""Where results go; only a shell makes a home of `~`, and a folder of that name is nobody's wish."""


class CompatibilityConfig(Strict):
    """How a rationale's weight is computed from its scores (docs/definitions.md, Weights; paper section 3.2)."""

    consensus: StrictFloat = Field(0.25, description="coefficient of the consensus score; 0 turns it off")
    adaptability: StrictFloat = Field(1.0, description="coefficient of the adaptability score; 0 turns it off")
    difficulty: StrictFloat = Field(0.25, description="coefficient of the difficulty (it lowers the weight); 0: off")
    temperature: StrictFloat = Field(
        0.5,
        gt=0,
        description="softmax temperature; 1.0 means no sharpening, less favours the best rationale",
        json_schema_extra={"remedy": "use 1.0 for no sharpening"},
    )
    estimator: Literal["lens", "probe"] = Field("probe", description="how the belief in the gold answer is read")
    gain: Literal["positive", "net", "peak"] = Field("net", description="sum of rises, end - start, largest rise")
    off_weight: StrictFloat = Field(0.1, ge=0, description="lens: weight of tokens outside thinking expressions")
    max_probes: StrictInt = Field(16, ge=2, description="probe: most probe points a rationale")
    pool: Literal["last", "attention"] = Field("last", description="consensus: which hidden state stands for a path")
    attention: Literal["joint", "heads"] = Field(
        "joint", description="consensus: one softmax of all heads' sum, or the mean of each head's softmax"
    )
    rank_clip: StrictInt = Field(100, ge=1, description="rank_surprisal: larger ranks count as this one")
    local_steps: StrictInt = Field(1, ge=1, description="local_naturalness: steps before a step that it is read after")
    normalise: Literal["problem", "running"] = Field("problem", description="standardise scores by problem or run")
    thinking_expressions: tuple[str, ...] = Field(
        (), description="extra thinking expressions, as regular expressions", examples=[["let us see"]]
    )
    extra_scores: dict[str, StrictFloat] = Field(
        {},
        description="coefficients of further scores: rank_surprisal, local_naturalness, agreement, registered ones",
        examples=[{"my_score": 0.5}],
    )
    scores_from: str | None = Field(
        None,
        description="Python file or module that registers scores; imported, so name only your own",
        examples=["my_scores.py"],
    )

    @field_validator("thinking_expressions")
    @classmethod
    def _patterns_compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                empty = regex.compile(pattern).match("") is not None
            except regex.error as error:
                raise ValueError(f"must be regular expressions, got {pattern!r}: {error}; escape special signs")
            if empty:
                raise ValueError(f"must not match the empty string, got {pattern!r}; write at least one character")
        return patterns


class TextConfig(Strict):
    """How a problem and a rationale become text (docs/definitions.md, Text to tokens)."""

    prompt_template: str = Field("Question: {question}\nAnswer:", description="used without a chat template")
    answer_template: str = Field("The answer is {answer}.", description="the answer segment's sentence")
    rationale: Literal["reasoning", "answer"] = Field(
        "reasoning",
        description="what a text is: reasoning that ends in an answer, or the answer itself, as a translation",
    )
    system: str | None = Field(None, min_length=1, description="chat template: a system message before the question")
    template_options: dict[str, Any] = Field(
        {}, description="what the student's chat template takes", examples=[{"enable_thinking": False}]
    )
    close_thinking: bool = Field(False, description="end the thinking that a chat template opens, before the rationale")

    def messages(self, question: str) -> list[dict[str, str]]:
        """What a chat template is filled in with."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": question}]

    @field_validator("prompt_template")
    @classmethod
    def _holds_question(cls, template: str) -> str:
        return _holds_once(template, "{question}")

    @field_validator("answer_template")
    @classmethod
    def _holds_answer(cls, template: str) -> str:
        return _holds_once(template, "{answer}")


def _holds_once(template: str, placeholder: str) -> str:
    if template.count(placeholder) != 1:
        raise ValueError(f"must hold {placeholder} exactly once, got {template!r}; put {placeholder} where it belongs")
    return template


class AnswersConfig(Strict):
    """How the final answer of a rationale is found (docs/definitions.md, Final answers)."""

    infer: bool = Field(
        True, description="also take it from the closing sentence (numbers), the first word (yes/no), a choice's letter"
    )


class LoraConfig(Strict):
    """Low-rank adapters on all attention and MLP projections; `lora: null` trains all weights."""

    r: StrictInt = Field(16, ge=1, description="rank")
    alpha: StrictFloat = Field(32, gt=0, description="scale; the update is multiplied by alpha / r")
    dropout: StrictFloat = Field(0.1, ge=0, lt=1, description="dropout on the adapter's input")


class ProblemsConfig(Strict):
    """Where the problems are: a JSONL or Parquet file, a datasets folder or a hub name."""

    path: str = Field(min_length=1, description="file, datasets folder or hub name", examples=["problems.jsonl"])
    split: str = Field("train", description="split of a datasets folder or hub name")
    limit: StrictInt | None = Field(None, ge=1, description="take the first N problems", examples=[200])


class EvalConfig(Strict):
    """Benchmarks that should improve, and those that must not be forgotten.

    A benchmark is a name (`gsm8k`), a name with other data (`gsm8k=FILE`), a file of problems, or a task's YAML file.
    """

    learned: tuple[str, ...] = Field((), description="should improve", examples=[["gsm8k", "svamp", "math500"]])
    retained: tuple[str, ...] = Field((), description="must not be forgotten", examples=[["csqa", "strategyqa"]])
    limit: StrictInt | dict[str, StrictInt] | None = Field(
        None, description="rows per benchmark, for all of them or by name", examples=[200]
    )
    every_epoch: bool = Field(False, description="also after each epoch of training")
    samples: StrictInt | None = Field(None, ge=1, description="answers per row, for pass@1", examples=[4])
    temperature: StrictFloat | None = Field(None, ge=0, description="0 is greedy; else the task's", examples=[0.7])
    max_new_tokens: StrictInt | None = Field(None, ge=1, description="instead of the task's limit", examples=[512])
    batch_tokens: StrictInt = Field(65536, ge=1, description="tokens written at once; bounds memory")
    drift_rows: StrictInt = Field(100, ge=0, description="prompts per benchmark that drift is measured on; 0: not")

    @field_validator("limit", mode="before")
    @classmethod
    def _counts_rows(cls, limit: Any) -> Any:
        for number in limit.values() if isinstance(limit, dict) else [limit]:
            if limit is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise ValueError(f"must be >= 1, a number or numbers by benchmark, got {number!r}; the default is null")
        return limit


class ReportConfig(Strict):
    """What is done for the report alone; nothing of it changes the student."""

    gains: bool = Field(
        True, description="after training, read a sample again to show where beliefs rise; costs a twentieth"
    )


class CardConfig(Strict):
    """What only its user can say of a student: it goes into the model card (student/README.md)."""

    license: str | None = Field(None, description="the student's licence, as hubs name it", examples=["apache-2.0"])
    teacher_licences: dict[str, str] = Field(
        {}, description="licence or terms of each teacher's texts, by its name", examples=[{"qwq": "apache-2.0"}]
    )
    data: str | None = Field(None, description="where the problems come from, in a sentence")


class RunConfig(Strict):
    """One training run, from problems and rationales to a better student."""

    preset: Literal["paper"] | None = Field(
        None, description="settings for what this file does not say", examples=["paper"]
    )

    student: str = Field(
        min_length=1, description="hub name or folder of the student", examples=["Qwen/Qwen2.5-1.5B-Instruct"]
    )
    rationales: tuple[str, ...] = Field(
        (), description="training data or stores that exist already", examples=["rationales.jsonl"]
    )
    problems: ProblemsConfig | None = Field(None, description="what teachers are asked; stores join on its ids")
    teachers: tuple[TeacherConfig, ...] = Field((), description="who is asked where no rationales exist yet")
    generation: GenerationConfig = Field(GenerationConfig(), description="what becomes of the teachers' answers")
    output: OutputFolder = Field("runs/compact", description="the run folder")
    compatibility: CompatibilityConfig = Field(
        CompatibilityConfig(), description="how much each rationale counts, for this student, now"
    )
    weighting: Weighting = Field(
        "compact",
        description="weight rule: compact, equal, random, verified, {fixed: {TEACHER: weight}}, {fixed: data}, "
        "{best: SCORE}, {gate: RULE}",
        examples=["equal"],
    )
    consistency: StrictFloat = Field(
        0.0, ge=0, description="lambda: how much the branches' answers pull together; 0: not at all"
    )
    example: Literal["problem", "rationale"] = Field(
        "problem",
        description="what a batch counts: problems, or rationales alone (a plain mix; weighting equal or verified)",
        examples=["rationale"],
    )
    lora: LoraConfig | None = Field(LoraConfig(), description="low-rank adapters; null trains all weights")
    text: TextConfig = Field(TextConfig(), description="how problems and answers become text")
    answers: AnswersConfig = Field(AnswersConfig(), description="how a rationale's final answer is found")
    max_length: StrictInt = Field(
        MAX_LENGTH, ge=2, description="tokens of prompt + completion; longer ones are dropped"
    )
    max_tokens_per_pass: StrictInt = Field(
        MAX_TOKENS_PER_PASS,
        ge=2,
        description="tokens the student reads at once; bounds memory, not what probe and local_naturalness read after",
    )
    seed: StrictInt = Field(42, ge=0, lt=2**32, description="of everything random")
    train: dict[str, Any] = Field(
        TRAIN_DEFAULTS,
        validate_default=True,
        description="transformers.TrainingArguments, by its own names; bf16 also without a GPU",
    )
    eval: EvalConfig = Field(EvalConfig(), description="benchmarks before and after")
    report: ReportConfig = Field(ReportConfig(), description="what is done for the report alone")
    card: CardConfig = Field(CardConfig(), description="what the student's model card says of licences and data")

    @field_validator("rationales", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @field_validator("rationales")
    @classmethod
    def _not_empty(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        if not all(paths):
            raise ValueError("must not hold an empty path; write the file's name")
        if twice := sorted({path for path in paths if paths.count(path) > 1}):
            raise ValueError(f"must name each file once, got {twice[0]!r} twice; remove one of them")
        return paths

    @field_validator("example")
    @classmethod
    def _nothing_is_compared(cls, example: str, info: ValidationInfo) -> str:
        weighting, consistency = info.data.get("weighting", "equal"), info.data.get("consistency", 0.0)
        wrong = []
        if weighting not in ("equal", "verified"):
            wrong.append(
                f"weighting {weighting!r} weighs the rationales of a problem against each other; write "
                "`weighting: equal`, or `weighting: verified` for the right ones"
            )
        if consistency:
            wrong.append(
                f"consistency {consistency:g} asks them to agree, but each is read alone; write `consistency: 0.0`"
            )
        if example == "rationale" and wrong:
            raise ValueError("must be problem here: " + ", and ".join(wrong))
        return example

    @field_validator("train")
    @classmethod
    def _published_defaults(cls, train: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return with_defaults(train, adapters=info.data.get("lora") is not None)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, data: Any) -> Any:
        return {"train": {}, **with_preset(data)} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _has_sources(self) -> RunConfig:
        problems = source_problems(self.rationales, [t.name for t in self.teachers], self.problems)
        if problems:
            raise ValueError("\n".join(problems))
        return self


def with_defaults(train: Mapping[str, Any], adapters: bool) -> dict[str, Any]:
    """The given settings and the defaults of the others; who gives save_steps wants checkpoints by steps."""
    rate = {} if adapters else {"learning_rate": ALL_WEIGHTS_RATE}
    by_steps = {"save_strategy": "steps"} if "save_steps" in train else {}
    return {**TRAIN_DEFAULTS, **rate, **by_steps, **train}


def with_preset(data: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings with what its `preset` says where they say nothing; an unknown name is left to the check."""
    preset = PRESETS.get(str(data.get("preset")), {})
    merged = dict(data)
    for key, value in preset.items():
        own = merged.get(key)
        if key not in merged:
            merged[key] = dict(value) if isinstance(value, dict) else value
        elif isinstance(value, dict) and isinstance(own, dict):
            merged[key] = {**value, **own}
    return merged


def source_problems(rationales: Any, teacher_names: list[Any], problems: Any) -> list[str]:
    """What the keys must fulfil together, apart from the models so that one bad value elsewhere does not hide it."""
    wrong = []
    if not rationales and not teacher_names:
        wrong.append("needs `rationales: FILE` (they exist already) or `teachers:` (to be asked); got neither")
    if teacher_names and problems is None:
        wrong.append("`teachers:` needs `problems: {path: FILE}`: what shall they be asked?")
    for name in sorted({str(n) for n in teacher_names if teacher_names.count(n) > 1}):
        wrong.append(f"teachers must have different names, got {name!r} twice; rename one")
    return wrong
