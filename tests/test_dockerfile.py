"""The Dockerfile without Docker: its instructions are read, and its steps run in a folder that stands for its root.

What is not run: the base image, apt-get, and the step that adds a user (it needs root); a workflow builds the image.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDS_ROOT = ("useradd", "chown")


def instructions(text: str) -> list[tuple[str, str]]:
    """(word, rest) of each instruction; a line that ends in a backslash goes on."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


STEPS = instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def given(word: str) -> list[str]:
    return [rest for name, rest in STEPS if name == word]


def arguments() -> dict[str, str]:
    return {name: value.strip('"') for name, _, value in (rest.partition("=") for rest in given("ARG"))}


def test_every_instruction_is_known_and_every_argument_is_used():
    assert {name for name, _ in STEPS} <= {"ARG", "FROM", "RUN", "COPY", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}
    everything = " ".join(rest for name, rest in STEPS if name != "ARG")
    assert set(re.findall(r"\$\{(\w+)\}", everything)) == set(arguments())
    words = [name for name, _ in STEPS]
    assert words.index("USER") > max(
        i for i, word in enumerate(words) if word == "RUN"
    )  # a step after it has no rights


def test_what_is_copied_exists_and_is_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for rest in given("COPY"):
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source.rstrip("/") not in ignored
    copied = " ".join(given("COPY"))
    # What the package's build reads.
    for needed in ("pyproject.toml", "README.md", "LICENSE", "src", "constraints.txt"):
        assert needed in copied


def test_the_bases_and_arguments_of_the_heads_examples_are_the_files():
    head = (ROOT / "Dockerfile").read_text().split("\nARG")[0]
    assert set(re.findall(r"--build-arg \"?(\w+)=", head)) | set(re.findall(r"PIP_FLAGS", head)) <= set(arguments())
    assert json.loads(given("ENTRYPOINT")[0]) == ["/opt/venv/bin/compact"]


def _image(folder: Path, links: bool) -> dict[str, str]:
    """A folder as the image's root, and the environment of its steps.

    With `links`, a new virtual environment sees the packages of this one: pip finds them and downloads nothing.
    """
    for rest in given("COPY"):
        *sources, target = rest.split()
        for source in sources:
            inside = folder / "opt/compact" / target / (source if (ROOT / source).is_file() else "")
            inside.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, inside, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                shutil.copy(ROOT / source, inside)
    binaries = folder / "usr/bin"
    binaries.mkdir(parents=True)
    packages = Path(next(p for p in sys.path if p.endswith("site-packages")))
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    link = f'echo "{packages}" > "$3/lib/{version}/site-packages/here.pth"' if links else "true"
    python = binaries / "python3"
    python.write_text(
        f'#!/bin/sh\n"{sys.executable}" "$@" || exit $?\n[ "$1 $2" = "-m venv" ] && [ -d "$3" ] || exit 0\n{link}\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    flags = {"PIP_FLAGS": "--no-build-isolation"} if links else {}
    return {**kept, **arguments(), **flags, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}


def _build(folder: Path, links: bool) -> tuple[Path, dict[str, str]]:
    """Run the steps; returns the command that the image would start, and its environment."""
    environment = _image(folder, links)
    workdir = folder / given("WORKDIR")[0].lstrip("/")
    done = 0
    for step in given("RUN"):
        if any(word in step for word in NEEDS_ROOT):
            continue
        line = re.sub(r"(?<![\w.])/opt/", f"{folder}/opt/", step)
        ran = subprocess.run(
            ["sh", "-ec", line], cwd=workdir, env=environment, capture_output=True, text=True, timeout=1500, check=False
        )
        assert ran.returncode == 0, f"{step}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}"
        done += 1
    assert done == 2
    (command,) = json.loads(given("ENTRYPOINT")[0])
    return folder / command.lstrip("/"), environment


def _ask(command: Path, environment: dict[str, str], *words: str) -> str:
    ran = subprocess.run(
        [command, *words],
        cwd=command.parents[3],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def _works(command: Path, environment: dict[str, str]) -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert version in _ask(command, environment, "--version")
    assert "torch" in _ask(command, environment, "env")
    assert "Usage" in _ask(command, environment, *json.loads(given("CMD")[0]))
    python = command.parent / "python"
    where = _ask(python, environment, "-c", "import compact_distill; print(compact_distill.__file__)")
    assert Path(where.strip()).is_relative_to(command.parents[1])  # the image's own copy, not this checkout


def test_its_steps_install_a_command_that_answers(tmp_path):
    _works(*_build(tmp_path, links=True))


@pytest.mark.slow
def test_its_steps_install_everything_from_the_registry(tmp_path):
    _works(*_build(tmp_path, links=False))  # `make wheel` runs the demo of such an environment
