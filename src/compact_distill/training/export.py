"""What others get: the card of a student and of exported data, and a student's adapter merged into its base.

A card says of a student what it is made of, what it can do, what it forgot; of exported data who wrote it. Everything
comes from the run folder and from `card:` of its configuration; what neither says stands there as "not stated". Texts
of data and models are escaped: a card is rendered as Markdown with HTML.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from compact_distill.config.file import load_config
from compact_distill.config.models import RunConfig, TextConfig
from compact_distill.data import ExportCounts
from compact_distill.errors import ConfigError, RunError
from compact_distill.records import Instance, RationaleStatus
from compact_distill.report.drawing import UNITS
from compact_distill.report.read import PairedChange, RunData, TaskResult, read_run
from compact_distill.runs.files import atomic_write, give_ordinary_modes
from compact_distill.runs.progress import say
from compact_distill.students.load import adapter_base, load_student, split_revision

if TYPE_CHECKING:
    import torch

_CITATION = """@article{cui2026compact,
  title   = {``The Whole Is Greater Than the Sum of Its Parts'':
             A Compatibility-Aware Multi-Teacher CoT Distillation Framework},
  author  = {Cui, Jin and Guo, Jiaqi and Zhou, Jiepeng and Yang, Ruixuan and Lu, Jiayi and Xu, Jiajun and
             Song, Jiangcheng and Zhao, Boran and Ren, Pengju},
  journal = {arXiv preprint arXiv:2601.13992},
  year    = {2026}
}"""
_UNSTATED = "not stated"


def write_card(run: RunData) -> Path:
    """Write the card of a run's student as `student/README.md`, where hubs look for it; returns its path."""
    path = run.path / "student" / "README.md"
    card = model_card(run, load_config(run.path / "config.yaml"))
    if not path.is_file() or path.read_bytes() != card.encode():
        with atomic_write(path, keep=True) as file:  # somebody may have written into it
            file.write(card)
    return path


def push_card(run: str | Path, repository: str) -> None:
    """Put the run's card onto the hub, beside the weights that transformers' trainer pushed (`push_to_hub: true`).

    That trainer pushes when training ends, before there are results. The hub's own token is used; a hub that refuses
    is said, and ends nothing: the card lies in the student's folder.
    """
    from huggingface_hub import HfApi

    path = Path(run) / "student" / "README.md"
    try:
        HfApi().upload_file(
            path_or_fileobj=str(path), path_in_repo="README.md", repo_id=repository, commit_message="Model card"
        )
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors
        say(f"card: {repository} did not take it ({str(error).splitlines()[0][:200]}); it lies in {path}")


def model_card(run: RunData, config: RunConfig, merged: bool = False) -> str:
    """The card as Markdown, with the hub's metadata in front; `merged`: of the student with its adapter merged in."""
    adapter = not merged and (run.path / "student" / "adapter_config.json").is_file()
    what = f"{'A LoRA adapter for' if adapter else 'All weights of'} {_base(config)}"
    what = f"{_base(config)} with a LoRA adapter merged into it" if merged else what
    if adapter_base(config.student):
        what += f" (the adapter `{_code(Path(config.student).name)}` trained further)"
    how = ", each an example of its own" if config.example == "rationale" else " at once, each with a weight of its own"
    texts = "answers" if config.text.rationale == "answer" else "rationales (worked-out solutions)"
    parts = [
        _front(run, config, adapter),
        f"# {_safe(run.title)}\n\n{what}, trained with [compact-distill](https://arxiv.org/abs/2601.13992) on several "
        f"teachers' {texts}{how}.",
        _results(run),
        _data(run, config),
        _settings(run, config),
        _load(run, config, adapter),
        f"## Citation\n\n```bibtex\n{_CITATION}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def dataset_card(instances: Sequence[Instance], counts: ExportCounts, shape: str, file: str) -> str:
    """The card of exported rationales as Markdown: what the rows are, who wrote them, how to load them."""
    front = {"task_categories": ["text-generation"], "tags": ["chain-of-thought", "distillation"]}
    written: dict[str, int] = {}
    for instance in instances:
        for rationale in instance.rationales:
            written[rationale.teacher] = written.get(rationale.teacher, 0) + bool(rationale.text.strip())
    rows = [[name, str(count), _UNSTATED] for name, count in written.items()]
    fields = "`prompt`, `completion`" if shape == "prompt_completion" else "`messages` (user, assistant)"
    parts = (
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
        f"# {_safe(Path(file).stem)}",
        f"Chain-of-thought rationales of several teachers for {len(instances)} problems, written by "
        "[compact-distill](https://arxiv.org/abs/2601.13992).",
        f"{counts.written} rows of {fields}, with `id`, `teacher` and `sample`. Left out: {counts.missing} missing, "
        f"{counts.unparsed} without an answer that can be found. Right and wrong rationales are both among them.",
        _table(["teacher", "rationales", "licence of its texts"], rows),
        "```python\nfrom datasets import load_dataset\n\n"
        f'rows = load_dataset("json", data_files={json.dumps(_code(file))})\n```',
    )
    return "\n\n".join(parts) + "\n"


def _front(run: RunData, config: RunConfig, adapter: bool) -> str:
    base, _ = split_revision(_base_model(config))
    thought = [] if config.text.rationale == "answer" else ["chain-of-thought"]
    front: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["compact-distill", "distillation", *thought],
    }
    if not Path(base).exists():  # a hub name; a folder of this machine means nothing to others
        front["base_model"] = base
        front["base_model_relation"] = "adapter" if adapter else "finetune"
    if config.card.license:
        front["license"] = config.card.license
    after = [result for result in run.results if result.student == "student"]
    if after:
        front["model-index"] = [{"name": run.title, "results": [_index_entry(result) for result in after]}]
    return "---\n" + yaml.safe_dump(front, sort_keys=False, allow_unicode=True) + "---"


def _index_entry(result: TaskResult) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": result.task, "type": result.task},
        "metrics": [{"type": result.metric, "value": round(result.value, 4)}],
    }


def _results(run: RunData) -> str:
    if not run.changes:
        return "## Results\n\nNot evaluated: the configuration named no benchmarks."
    rows = [_change_row(change) for change in run.changes]
    header = ["task", "role", "rows", "measure", "base", "this student", "difference (95 % interval)"]
    forgot = [change for change in run.changes if change.role == "retained"]
    lost = [change for change in forgot if change.worse]
    if lost:
        names = ", ".join(f"{_safe(change.task)} ({_difference(change)})" for change in lost)
        said = f"**It forgot:** {names}."
    elif forgot:
        said = (
            "On the tasks it was not to forget, no loss shows beyond chance; intervals and numbers of rows say what "
            "might still hide."
        )
    else:
        said = "No task was named that it was not to forget, so what it forgot is unknown."
    return f"## Results\n\n{_table(header, rows)}\n\n{said}"


def _change_row(change: PairedChange) -> list[str]:
    shown = [_value(change.metric, value) for value in (change.before, change.after)]
    return [change.task, change.role or "", str(change.rows), change.metric, *shown, _difference(change)]


def _value(metric: str, value: float) -> str:
    return f"{value:.3f}" if metric in UNITS else f"{100 * value:.1f} %"


def _difference(change: PairedChange) -> str:
    if change.unchanged:
        return f"none: not one of {change.rows} rows was gained or lost"
    if change.metric in UNITS:
        return f"{change.difference:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
    return f"{100 * change.difference:+.1f} points ({100 * change.low:+.1f} to {100 * change.high:+.1f})"


def _data(run: RunData, config: RunConfig) -> str:
    hashes = run.manifest.get("data", {}).get("instances")
    weights, there = _mean_weights(run), len(run.problems)
    rows = []
    for name in run.taught:
        used = [run.rationale(problem, name) for problem, own in run.trained_on.items() if name in own]
        judged = [rationale.verdict for rationale in used if rationale and rationale.verdict]
        right = f"{100 * judged.count('correct') / len(judged):.0f} %" if judged else _UNSTATED
        weight = f"{weights[name]:.3f}" if name in weights else ""
        licence = config.card.teacher_licences.get(name, _UNSTATED)
        rows.append([name, str(len(used)), right, weight, licence])
    mix = config.example == "rationale"
    counted = f"{len(run.trained_on)}{f' of {there}' if there > len(run.trained_on) else ''}"
    counted += f" {'rationales' if mix else 'problems'}"
    counted += f" of {run.questions} problems" if mix and run.questions else ""
    said = counted + (f" (SHA-256 {str(hashes)[:16]}...)" if hashes else "")
    note = f"\n\n{_safe(config.card.data)}" if config.card.data else ""
    header = ["teacher", "rationales used", "right", "mean weight", "licence of its texts"]
    words = "Right: the final answer is the gold answer, of those that were judged. " + (
        "All rationales that were trained on counted alike."
        if mix
        else "A problem's weights sum to 1, and say how much each of its rationales counted."
    )
    with_weight = sum(map(len, run.trained_on.values()))
    if (unused := sum(rationale.status == RationaleStatus.OK for rationale in run.rationales()) - with_weight) > 0:
        words += f" {unused} more rationales had no weight in any step, and are not counted here."
    return f"## Training data\n\n{said}, with rationales of:\n\n{_table(header, rows)}\n\n{words}{note}"


def _mean_weights(run: RunData) -> dict[str, float]:
    """Each teacher's mean weight, over the readings of those rationales that were trained on."""
    if (trace := run.trace) is None:
        return {}
    used_NK = trace.trained_PK[trace.problem_N] & ~np.isnan(trace.weights_NK)
    columns = zip(trace.teachers, trace.weights_NK.T, used_NK.T, strict=True)
    return {name: float(weights_N[used_N].mean()) for name, weights_N, used_N in columns if used_N.any()}


def _settings(run: RunData, config: RunConfig) -> str:
    compatibility = config.compatibility.model_dump(mode="json", exclude_none=True)
    shown: dict[str, Any] = {
        "example": config.example,
        "weight rule": config.weighting,
        "compatibility": {key: value for key, value in compatibility.items() if value not in ([], {}, ())},
        "consistency": config.consistency,
        "LoRA": _lora(run.path / "student" / "adapter_config.json"),
        "training": {key: config.train[key] for key in sorted(config.train)},
        "seed": config.seed,
    }
    versions: Mapping[str, Any] = run.manifest.get("versions", {})
    named = [name for name in ("compact-distill", "torch", "transformers", "peft") if name in versions]
    used = ", ".join(f"{name} {versions[name]}" for name in named)
    rows = [[name, _plain(value)] for name, value in shown.items()]
    return f"## Settings\n\n{_table(['setting', 'value'], rows)}\n\nVersions: {_safe(used) or _UNSTATED}."


def _lora(path: Path) -> dict[str, Any] | str:
    """The student's own adapter: a student that was one already does not have what `lora:` says."""
    if not path.is_file():
        return "none: all weights are trained"
    settings = json.loads(path.read_text(encoding="utf-8"))
    return {name.removeprefix("lora_"): settings.get(name) for name in ("r", "lora_alpha", "lora_dropout")}


def _plain(value: Any) -> str:
    return ", ".join(f"{key}: {item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)


def _load(run: RunData, config: RunConfig, adapter: bool) -> str:
    kind = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    package = "peft" if adapter else "transformers"
    imports = f"from {package} import {kind}\n" if adapter else ""
    others = "AutoTokenizer" if adapter else f"{kind}, AutoTokenizer"
    chat = _chats(run.path / "student")
    code = (
        f'{imports}from transformers import {others}\n\nname = "PATH_OR_NAME"\n'
        f"model, tokenizer = {kind}.from_pretrained(name), AutoTokenizer.from_pretrained(name)\n\n"
        f'question = "..."\n{_prompt_code(config.text, chat)}\n'
        "written = model.generate(**inputs, do_sample=False, max_new_tokens=512)\n"
        'print(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    )
    folder = adapter and Path(split_revision(_base_model(config))[0]).exists()
    needs = " Its base was a folder of the machine that trained it; `adapter_config.json` says where." if folder else ""
    template = _code(config.text.answer_template.replace("\n", "\\n"))
    form = f"Its answers end in the form `{template}`."
    form = "It answers at once, without reasoning." if config.text.rationale == "answer" else form
    closed = (
        " Thinking that the prompt opens was closed at once in training." if chat and config.text.close_thinking else ""
    )
    return (
        f"## Load it\n\n```python\n{code}\n```\n\nThat is the prompt it was trained on, and it answers best to it."
        f"{closed} {form}{needs}"
    )


def _chats(student: Path) -> bool:
    """Whether the student's tokenizer has a chat template."""
    settings = student / "tokenizer_config.json"
    inside = settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8")
    return inside or (student / "chat_template.jinja").is_file()


def _prompt_code(text: TextConfig, chat: bool) -> str:
    """Lines of Python that make `inputs` of `question`, as training did."""
    if not chat:
        template = _code(json.dumps(text.prompt_template, ensure_ascii=False))
        return f'prompt = {template}.replace("{{question}}", question)\ninputs = tokenizer(prompt, return_tensors="pt")'
    system = [f'{{"role": "system", "content": {json.dumps(text.system, ensure_ascii=False)}}}'] if text.system else []
    messages = ", ".join([*system, '{"role": "user", "content": question}'])
    options = f", **{text.template_options!r}" if text.template_options else ""
    asked = f'add_generation_prompt=True, return_dict=True, return_tensors="pt"{options}'
    return (
        _code(f"messages = [{messages}]") + "\n" + _code(f"inputs = tokenizer.apply_chat_template(messages, {asked})")
    )


def _base_model(config: RunConfig) -> str:
    """What the student's adapter, or the student itself, was made of: the base of a student that was an adapter."""
    return adapter_base(config.student) or config.student


def _base(config: RunConfig) -> str:
    name, revision = split_revision(_base_model(config))
    shown = _code(Path(name).name if Path(name).exists() else name)
    return f"`{shown}`" + (f" at `{_code(revision)}`" if revision else "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *[[_safe(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _safe(text: object) -> str:
    """Text of others as one line of plain Markdown: no markup, no HTML, no table cell of its own."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|!])", r"\\\1", line)


def _code(text: str) -> str:
    """Text of others inside a code span or block, where escapes would show: one line without the mark that ends it."""
    return "".join(c if c.isprintable() else " " for c in text).replace("`", "'")


# What a merged model and its two parts are compared on: plain text that every tokenizer knows; ten tokens and more.
_TEXTS = ("Question: Ann has 7 apples and buys 5 more. How many apples does she have?\nAnswer:", "The answer is 12.")
# Of the largest logit's magnitude. Merging rounds each weight once, which moves logits a little a layer.
_TOLERANCE = {"torch.float64": 1e-10, "torch.float32": 1e-4, "torch.float16": 2e-2, "torch.bfloat16": 1e-1}


def merge(student: str | Path, out: str | Path) -> float:
    """Write the adapter folder `student`, merged into its base, as one model into `out`; the folder appears whole.

    Args:
        student: folder of an adapter.
        out: a folder that does not exist yet, or is empty.

    Returns:
        The largest difference of a logit before and after, over the largest logit.

    Raises:
        ConfigError: no adapter; `out` holds files.
        StudentError: the adapter or its base cannot be loaded.
        RunError: the merged model computes something else; nothing is written then.
    """
    import torch

    out = Path(out)
    if adapter_base(student) is None:
        whole = (Path(student) / "config.json").is_file()
        remedy = "it is whole already" if whole else "name a run, or its student's folder"
        raise ConfigError(f"{student} must be an adapter's folder, but has no adapter_config.json; {remedy}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} must be a new or empty folder, but holds files; choose another")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out} cannot be written: folder {out.parent} does not exist; make it first")
    model: Any
    model, tokenizer = load_student(student)
    model.eval()
    dtype = str(model.dtype)
    with torch.no_grad():
        before = [_logits(model, tokenizer, text) for text in _TEXTS]
        whole = model.merge_and_unload()
        after = [_logits(whole, tokenizer, text) for text in _TEXTS]
    scale = max(float(logits.abs().max()) for logits in before)
    difference = max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True)) / scale
    limit = _TOLERANCE.get(dtype, 1e-1)
    if not difference <= limit:  # also where it is not a number
        raise RunError(
            f"the merged model differs from adapter and base by {difference:.2g} of the largest logit, more than "
            f"{limit:g} for {dtype}; nothing was written. Serve the adapter unmerged"
        )
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".merged-") as scratch:
        folder = Path(scratch) / "model"
        whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        give_ordinary_modes(folder)
        if (card := Path(student) / "README.md").is_file():
            (folder / "README.md").write_bytes(_card_when_merged(card))
        if out.exists():
            out.rmdir()
        os.replace(folder, out)
    return difference


def _card_when_merged(card: Path) -> bytes:
    """A student's card for the merged model; one that somebody has written into stays as it is."""
    own, run = card.read_bytes(), card.parent.parent
    if not (run / "manifest.json").is_file():
        return own
    read, config = read_run(run), load_config(run / "config.yaml")
    return model_card(read, config, merged=True).encode() if own == model_card(read, config).encode() else own


def _logits(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    import torch

    ids = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
    return model(input_ids=ids).logits[0].double()
