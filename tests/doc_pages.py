"""What stands in a page of the documentation: fenced blocks, their marks, calls of programs; and what is wrong with it.

`faults(text)` lists everything that is wrong, so that a test may also see that each kind of wrong page is found.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import typer.main

from compact_distill.cli import app

ROOT = Path(__file__).resolve().parents[1]
SHELLS = ("sh", "bash", "console")
CODE = (*SHELLS, "python")
DATA = ("yaml", "json", "text")  # nothing in it can be run
FENCED = re.compile(r"^(?P<indent> *)```(?P<kind>[^\n]*)\n(?P<text>.*?)^ *```$", re.M | re.S)
_MARK = re.compile(r"<!-- (?P<kind>run|not run): (?P<what>[^>]+) -->\s*$")
_PROGRAMS = (
    "accelerate|actionlint|apt-get|bash|cd|chromium|compact|conda|curl|docker|export|git|kill|llama-server|lm_eval|make|"
    "mkdir|mkdocs|pip|pytest|python3?|ray|sbatch|sh|source|srun|sudo|torchrun|twine|uv|vllm"
)
_INDENTED = re.compile(rf"^(?: {{4,}}|\t)\s*(?:[$>] )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(?:{_PROGRAMS}) .*", re.M)
_LLAMA_CPP = "llama.cpp/"  # its sources, which are not ours


def mark(text: str, block: re.Match[str]) -> re.Match[str] | None:
    """What the line before a block says of it."""
    return _MARK.search(text[: block.start()])


def faults(text: str) -> list[str]:
    """All that is wrong with a page: blocks without a mark, of a kind nobody reads, calls of what does not exist."""
    found = [
        f"a block without a mark:\n{b['text']}"
        for b in FENCED.finditer(text)
        if b["kind"] in CODE and not mark(text, b)
    ]
    kinds = [block["kind"] for block in FENCED.finditer(text)]
    found += [f"a block of kind {kind!r}; known are {CODE + DATA}" for kind in kinds if kind not in CODE + DATA]
    if len(re.findall(r"^[ \t>]*(?:```|~~~)", text, re.M)) != 2 * len(kinds):
        found.append("fences that do not pair, are quoted, or are of another sort than ```")
    outside = FENCED.sub("", text)
    found += [f"a command that is only indented has no place for a mark: {line}" for line in _INDENTED.findall(outside)]
    for block in FENCED.finditer(text):
        if block["kind"] == "json":
            found += _broken_json(block["text"])
        if block["kind"] == "text" and calls(block["text"]):
            found.append(f"commands in a block of text:\n{block['text']}")
        if block["kind"] == "python":
            found += unknown_python(block["text"])
    return found + [fault for call in _all_calls(text) for fault in unknown_call(call)]


def _broken_json(text: str) -> Iterator[str]:
    """A block holds one object, or one a line."""
    try:
        json.loads(text)
    except ValueError:
        for line in text.splitlines():
            try:
                json.loads(line)
            except ValueError as error:
                yield f"{error}: {line}"


def _all_calls(text: str) -> list[list[str]]:
    """Calls in a page's shell blocks, and in the `code` of its sentences."""
    found = [call for block in FENCED.finditer(text) if block["kind"] in SHELLS for call in calls(block["text"])]
    for paragraph in FENCED.sub("", text).split("\n\n"):
        found += [call for code in re.findall(r"`([^`]+)`", paragraph) for call in calls(" ".join(code.split()))]
    return found


def calls(shell: str) -> list[list[str]]:
    """Calls of `compact`, `make` and scripts of this repository in lines of a shell, each as its words."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", shell).splitlines():
        for part in re.split(r"&&|\|\||[;|&]", re.split(r"(?:^|\s)#(?:\s|$)", line)[0]):
            words = [word.strip("[]") for word in part.replace("...", "").split()]
            for place, word in enumerate(words[:-1]):
                if word in ("compact", "make") and re.match(r"[a-z]", words[place + 1]):
                    found.append(words[place:])
                    break
                if re.fullmatch(r"(\S*/)?(python3?|bash|sh|sbatch)", word) and re.search(
                    r"\.(py|sh|sbatch)$", words[place + 1]
                ):
                    found.append(["script", *words[place + 1 :]])
                    break
    return found


def unknown_call(words: list[str]) -> list[str]:
    """What a call names that does not exist: the command, the target, the script, an option of theirs."""
    kind, name, *rest = words
    options = [word.strip("'\"").split("=")[0] for word in rest if word.startswith("--")]
    if kind == "compact":
        return _unknown_command(name, [word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    if kind == "make":
        recipe = re.search(rf"^{name}:[^\n]*\n((?:\t.*\n)*)", makefile, re.M)
        if not recipe:
            return [f"make {name}: no such target"]
        given = re.search(r'ARGS="?([^"]*)', " ".join(rest))
        script = re.search(r"python (\S+\.py) \$\(ARGS\)", recipe[1])
        return unknown_call(["script", script[1], *given[1].split()]) if given and script else []
    if name.startswith(_LLAMA_CPP):
        return []
    if not (ROOT / name).is_file():
        return [f"no such file: {name}"]
    source = (ROOT / name).read_text(encoding="utf-8")
    return [f"{name}: no option {option}" for option in options if f'"{option}"' not in source]


def _unknown_command(name: str, options: list[str]) -> list[str]:
    group = typer.main.get_command(app)
    if name not in group.commands:
        return [f"compact {name}: no such command"]
    parameters = group.commands[name].params
    known = {"-h", "--help"}.union(*([*parameter.opts, *parameter.secondary_opts] for parameter in parameters))
    return [f"compact {name}: no option {option}" for option in options if option not in known]


def unknown_python(source: str) -> list[str]:
    """What a block of Python imports from this package, or gives to it by name, that does not exist."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return [f"{error}:\n{source}"]
    found, ours = [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "compact_distill":
            home = importlib.import_module(node.module)
            found += [f"{node.module} has no {name.name}" for name in node.names if not hasattr(home, name.name)]
            ours |= {name.asname or name.name: getattr(home, name.name, None) for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and callable(ours.get(node.func.id)):
            taken = inspect.signature(ours[node.func.id]).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
                given = [keyword.arg for keyword in node.keywords if keyword.arg]
                found += [f"{node.func.id} takes no {name}" for name in given if name not in taken]
    return found


def not_in_ci(block: str) -> list[str]:
    """Of a block that continuous integration is said to run: the targets that its script does not run."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    def recipe(target: str) -> str:
        return re.search(rf"^{target}:[^\n]*\n((?:\t.*\n)*)", makefile, re.M)[1]

    targets = re.findall(r"^make ([a-z-]+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M)
    ran = " ".join(recipe(target) for target in targets)
    missing = []
    for target in re.findall(r"^make ([a-z-]+)", block, re.M):
        programs = [program.strip() for program in re.findall(r"\$\(BIN\)/([\w -]+)", recipe(target))]
        if target not in targets and not all(f"bin/{program}" in ran for program in programs):
            missing.append(target)
    return missing
