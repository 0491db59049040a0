"""Make what the example needs: problems, a small student, and two small teachers that really are models.

    python examples/two_servers/make_world.py --out build/two-servers

Each teacher is a Llama of 0.35 M parameters, trained on one of the lab's scripts: one writes tersely and is mostly
right, the other thinks aloud. Takes one to three minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from pathlib import Path

from compact_distill import Problem
from compact_distill.lab import Teacher, Terse, Verbose, arithmetic, student

# The server renders this; system messages are no part of these teachers' little world.
CHAT = "Question: {{ messages[-1]['content'] }}\nAnswer:"


def make_teacher(script: Teacher, problems: list[Problem], steps: int, out: Path) -> None:
    """Train a model to write as the script does, and save it with a chat template."""
    recipe = student.Recipe(steps=steps)
    asked = itertools.islice(itertools.cycle(problems), steps * recipe.lines_per_step)
    text = [f"Question: {p.question}\nAnswer: {script.write(p, number)}" for number, p in enumerate(asked)]
    model = student.pretrain(recipe, text)
    model.generation_config.do_sample = True  # else `transformers serve` ignores temperature and seed
    tokenizer = student.tokenizer()
    tokenizer.chat_template = CHAT
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/two-servers"))
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--steps", type=int, default=600, help="training steps of each teacher")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    with (out / "problems.jsonl").open("w", encoding="utf-8") as file:
        for p in arithmetic("train", arguments.problems, seed=0):
            file.write(json.dumps({"id": p.id, "question": p.question, "answer": p.answer}) + "\n")
    seen = arithmetic("train", 2000, seed=1)
    for script in (Terse(), Verbose()):
        make_teacher(script, seen, arguments.steps, out / script.name)
    shutil.copytree(student.cached_student(), out / "student", dirs_exist_ok=True)
    print(f"made {out}")


if __name__ == "__main__":
    main()
