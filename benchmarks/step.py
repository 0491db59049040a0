"""Time and memory of a training step against peers; `make bench` runs it. See README.md beside this file.

python benchmarks/step.py --quick                                         a look, in minutes
python benchmarks/step.py --out benchmarks/results/cpu                    all of it
python benchmarks/step.py --shape smollm2-135m --lora --problems 12 --sections main \\
    --contenders lens probe trl-single trl-padded                         a real student's shape
python benchmarks/step.py --device cuda --shape qwen2.5-0.5b --lora       on a GPU, in bf16
python benchmarks/step.py --study runs/study-main                         a study's arms beside TRL, for its page
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import beside_trl
from compact_distill.errors import CompactError
from contenders import BUILDERS, Setup
from figure import draw
from measure import describe_machine
from race import Entry, race
from tables import Row, Section, markdown
from workload import (
    PROMPT,
    RATIONALE,
    SHAPES,
    TokenCounts,
    Workload,
    count_tokens,
    data_folder,
    gsm8k,
    synthetic,
    train_tokenizer,
)

OURS = ("lens", "probe")
TRL = ("trl-single", "trl-padded", "trl-packed")
TEACHERS = (1, 2, 4, 8)
LENGTHS = {100: 8, 300: 4, 1000: 2, 4000: 1}  # tokens of a rationale: problems a round
LONG = 2000  # tokens of a rationale in the two-phase section
SECTIONS = ("main", "teachers", "length", "two-phase")


def main() -> int:
    options = parse()
    if options.describe:
        say(json.dumps(describe_machine(options.device), indent=1))
        return 0
    if options.study is not None:
        return study_beside_trl(options)
    say(f"machine: {json.dumps(describe_machine(options.device))}")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.3 * cores:
        say(f"note: the machine is busy (load {load:.1f} on {cores} cores): times will be noisy; compare CPU ms")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, problems, source = load_problems(options)
        tokenizer.save_pretrained(folder)
        setup = Setup(
            shape=SHAPES[options.shape],
            device=options.device,
            dtype=torch.bfloat16 if options.dtype == "bf16" else torch.float32,
            lora=options.lora,
            checkpointing=options.checkpointing,
            rounds=options.rounds,
            tokenizer=folder,
        )
        sections = []
        fastest_trl = next(name for name in [*options.contenders, TRL[0]] if name in TRL)
        for name in options.sections:
            section = _SECTIONS[name](options, setup, problems, fastest_trl)
            if name == "main":
                section.title += f", {source}"
                fastest_trl = section.fastest(TRL) or fastest_trl
            sections.append(section)
            say(f"\n{markdown([section])}")
    if options.out is not None:
        write(options, setup, sections, load)
    return 1 if any(row.failure for section in sections for row in section.rows) else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few problems and rounds: a look, not a result")
    parser.add_argument(
        "--study", type=Path, metavar="FOLDER", help="time a finished study's arms beside TRL, for its page"
    )
    parser.add_argument("--arms", nargs="+", default=[], help="with --study: which arms (default: equal and compact)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cpu; with --study a GPU where there is one")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="default: fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small", help="size of the student (random weights)")
    parser.add_argument("--lora", action="store_true", help="train the published runs' adapters instead of all weights")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, for every contender")
    parser.add_argument("--rounds", type=int, help="rounds that are timed, after one that warms up")
    parser.add_argument("--problems", type=int, help="problems a round in the main section, a multiple of 4")
    parser.add_argument("--contenders", nargs="+", choices=tuple(BUILDERS), default=[*OURS, "naive", *TRL])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--lengths", nargs="+", type=int, help="tokens a rationale in the length section")
    parser.add_argument("--describe", action="store_true", help="describe the machine and do no more")
    parser.add_argument("--out", type=Path, help="write OUT.json, OUT.md and OUT.svg")
    options = parser.parse_args()
    if wrong := beside_trl.problems_of(options, parser.get_default):
        parser.error("; ".join(wrong))
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch sees; torch.cuda.is_available() is False")
    if options.study is not None:
        return options
    options.device = options.device or "cpu"
    options.dtype = options.dtype or ("bf16" if options.device == "cuda" else "fp32")
    options.rounds = options.rounds or (2 if options.quick else 7)
    options.problems = options.problems or (4 if options.quick else 24)
    if options.problems % 4:
        parser.error(f"--problems must be a multiple of 4 (problems an optimizer step), got {options.problems}")
    if options.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {options.rounds}")
    return options


def study_beside_trl(options: argparse.Namespace) -> int:
    """Time the arms of a study; what is wrong with it ends the command with one line."""
    try:
        return beside_trl.main(options, say)
    except CompactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def load_problems(options: argparse.Namespace) -> tuple[Any, list[Any], str]:
    """Tokenizer, problems of the main section spread over the file, and where they come from."""
    folder = data_folder()
    if folder is not None:
        tokenizer, problems = gsm8k(folder)
        return tokenizer, problems[:: len(problems) // options.problems][: options.problems], "GSM8K, four teachers"
    say("note: the real data is absent (COMPACT_DATA): synthetic problems of the same lengths instead")
    texts = [f"word{number} word{number + 1}" for number in range(2000)]
    problems = synthetic(options.problems, 4, RATIONALE, SHAPES[options.shape].vocabulary, spread=0.4)
    return train_tokenizer(texts, 2000), problems, "synthetic tokens of GSM8K's lengths, four rationales"


Make = Callable[[argparse.Namespace, Setup, list[Any], str], Section]


def main_section(options: argparse.Namespace, setup: Setup, problems: list[Any], trl: str) -> Section:
    """All contenders on GSM8K with four teachers."""
    workload = Workload("main", tuple(problems), step=4)
    entries = [Entry(name, name, workload) for name in options.contenders]
    return run("main", f"A step on {len(problems)} problems a round", entries, setup)


def teachers_section(options: argparse.Namespace, setup: Setup, problems: list[Any], trl: str) -> Section:
    """How time and memory grow with the number of teachers."""
    sizes = [(k, RATIONALE, 4) for k in (TEACHERS[-2:] if options.quick else TEACHERS)]
    return growth("teachers", f"Growth with K, {RATIONALE} tokens a rationale", sizes, setup, ["lens", "naive", trl])


def length_section(options: argparse.Namespace, setup: Setup, problems: list[Any], trl: str) -> Section:
    """How time and memory grow with the length of four rationales."""
    lengths = options.lengths or ([100, 300] if options.quick else list(LENGTHS))
    sizes = [(4, length, LENGTHS.get(length, 1)) for length in lengths]
    who = [name for name in dict.fromkeys(("lens", "naive", trl, *options.contenders)) if name in options.contenders]
    who = [name for name in who if name not in TRL or name == trl or name == "trl-packed"]
    return growth("length", "Growth with the tokens of each of 4 rationales", sizes, setup, who)


def growth(name: str, title: str, sizes: list[tuple[int, int, int]], setup: Setup, contenders: list[str]) -> Section:
    """Race contenders at each (teachers, tokens a rationale, problems a round)."""
    parts = []
    for k, length, count in sizes:
        problems = tuple(synthetic(count, k, length, setup.shape.vocabulary))
        workload = Workload(f"K = {k}, {length} tokens", problems, step=count)
        entries = [Entry(f"{who}, K = {k}, {length} tokens", who, workload) for who in contenders]
        parts.append(run(name, title, entries, setup))
    return Section(name, title, [row for part in parts for row in part.rows])


def two_phase_section(options: argparse.Namespace, setup: Setup, problems: list[Any], trl: str) -> Section:
    """Memory of four long rationales, in one pass and in two-phase mode, against one rationale of plain fine-tuning."""
    length = 300 if options.quick else LONG
    four = tuple(synthetic(1, 4, length, setup.shape.vocabulary))
    one = Workload("one rationale", tuple(synthetic(1, 1, length, setup.shape.vocabulary)), step=1)
    budget = PROMPT + length + 20  # one rationale with its prompt and gold answer, never two
    entries = [
        Entry("one pass, 4 rationales", "lens", Workload("four", four, step=1)),
        Entry("two-phase, 4 rationales", "lens", Workload("four", four, step=1, max_tokens_per_pass=budget)),
        Entry("plain, 1 rationale", "plain", one),
        Entry("trl-single, 1 rationale", "trl-single", one),
    ]
    return run("two-phase", f"Two-phase mode, {length} tokens a rationale", entries, setup)


_SECTIONS: dict[str, Make] = {
    "main": main_section,
    "teachers": teachers_section,
    "length": length_section,
    "two-phase": two_phase_section,
}


def run(name: str, title: str, entries: list[Entry], setup: Setup) -> Section:
    """Race the entries; one row each, with the FLOP floor of its problems."""
    say(f"{title}: {', '.join(entry.label for entry in entries)}")
    finished = race(entries, setup, say)
    rate = sorted(finished.rates)[len(finished.rates) // 2]
    rows = []
    for entry in entries:
        result, tokens = finished.results[entry.label], count_tokens(entry.workload.problems)
        first = entry.workload.problems[0]
        rows.append(
            Row(
                label=entry.label,
                contender=entry.contender,
                teachers=len(first.branches),
                rationale=round(tokens.labelled / len(first.branches)),
                tokens=asdict(tokens),
                floor=floor_operations(setup, tokens) / rate,
                seconds=result.seconds,
                cpu_seconds=result.cpu_seconds,
                peak=result.peak,
                loss=result.loss,
                failure=result.failure,
                six_n=floor_operations(replace(setup, lora=False), tokens) / rate,
            )
        )
    return Section(name, title, rows, rate)


def floor_operations(setup: Setup, tokens: TokenCounts) -> float:
    """Least floating-point operations a problem: body over unique tokens, LM head over labelled ones.

    6 a parameter and token; frozen weights (LoRA) need no gradient of their own: 4. Attention scores are left out.
    """
    shape = setup.shape
    kv = shape.width // shape.heads * shape.kv_heads
    layer = 2 * shape.width * shape.width + 2 * shape.width * kv + 3 * shape.width * shape.feed_forward
    each = 4 if setup.lora else 6
    return each * (shape.layers * layer * tokens.unique + shape.vocabulary * shape.width * tokens.labelled)


def write(options: argparse.Namespace, setup: Setup, sections: list[Section], load: float) -> None:
    """Write the results as JSON, Markdown and SVG."""
    out: Path = options.out
    out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "machine": describe_machine(options.device) | {"load_at_start": round(load, 2)},
        "setup": {
            "shape": asdict(setup.shape),
            "dtype": options.dtype,
            "lora": setup.lora,
            "checkpointing": setup.checkpointing,
            "rounds": setup.rounds,
        },
        "sections": [asdict(section) for section in sections],
    }
    (out.parent / f"{out.name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    head = "\n".join(f"- {key}: {value}" for key, value in {**results["machine"], **results["setup"]}.items())
    (out.parent / f"{out.name}.md").write_text(f"{head}\n\n{markdown(sections)}\n", encoding="utf-8")
    (out.parent / f"{out.name}.svg").write_text(draw(sections), encoding="utf-8")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
