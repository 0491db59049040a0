"""The house rules of CONTRIBUTING.md: small files and functions, everything public documented, tests that mirror."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import transformers

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "compact_distill"
FILES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
# Not by a file of their name: records have no behaviour, mathworker runs as a program (tests/answers/test_compare.py).
MIRRORED = 0.9


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_no_file_is_longer_than_400_lines():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_a_newcomer_meets_at_most_105_files():
    assert len(FILES) <= 105


def test_at_most_one_function_of_a_hundred_is_longer_than_50_lines():
    lengths = [node.end_lineno - node.lineno + 1 for _, node in functions()]
    assert sum(length > 50 for length in lengths) <= len(lengths) / 100


def test_every_public_name_is_documented():
    """A method may rest on what a protocol or base class says of the method of that name."""
    said = {name for name in dir(transformers.TrainerCallback) if name.startswith("on_")}
    said |= {node.name for _, node in functions() if ast.get_docstring(node)}
    silent = [path.name for path, tree in TREES.items() if not ast.get_docstring(tree)]

    def look(node: ast.Module | ast.ClassDef, path: Path) -> None:
        for child in node.body:
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if child.name.startswith("_"):
                continue
            inherited = isinstance(node, ast.ClassDef) and child.name in said
            if not ast.get_docstring(child) and not inherited:
                silent.append(f"{path.name}: {child.name}")
            if isinstance(child, ast.ClassDef):
                look(child, path)

    for path, tree in TREES.items():
        look(tree, path)
    assert silent == []


def test_every_module_of_the_method_says_what_its_shape_letters_mean():
    silent = {}
    for path, tree in TREES.items():
        if PACKAGE / "method" in path.parents and path.name != "__init__.py":
            legend = (ast.get_docstring(tree) or "").partition("Shape letters: ")[2]
            names = {getattr(node, key, "") for node in ast.walk(tree) for key in ("id", "arg", "attr")}
            suffixes = (re.fullmatch(r"_*[a-z][a-z0-9_]*_([A-Z]{1,5})", name or "") for name in names)
            used = {letter for suffix in suffixes if suffix for letter in suffix[1]}
            if missing := used - set(re.findall(r"\b[A-Z]\b", legend)):
                silent[path.name] = sorted(missing)
            elif not legend:
                silent[path.name] = ["no legend"]
    assert silent == {}


def test_each_term_of_the_papers_abstract_is_a_name_of_the_method():
    """Multi-dimensional compatibility: consensus, adaptability, difficulty; weights made of them; one loss."""
    method = PACKAGE / "method"
    files = {path.stem for path in method.glob("*.py")}
    assert files >= {"encode", "packing", "passes", "forward", "outputs", "scores", "weights", "loss", "score"}
    names = {node.name for path, node in functions() if path.parent == method}
    assert names >= {"consensus", "adaptability", "difficulty", "compatibility_weights", "aggregate", "thinking_spans"}


def test_no_name_of_a_file_stands_three_times():
    names = [path.stem for path in FILES if path.name != "__init__.py"]
    assert {name for name in names if names.count(name) > 2} == set()


def test_the_layers_are_the_folders_and_modules_that_exist():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = {name for layer in contracts[0]["layers"] for name in layer.split(" : ")}
    there = {path.stem for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    assert layers == there | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_what_is_imported_is_what_the_project_declares_and_all_of_it():
    project = PROJECT["project"]

    def named(requirements: list[str]) -> set[str]:
        names = {re.match(r"[\w.\-]+", text)[0].lower().replace("-", "_") for text in requirements}
        return {"yaml" if name == "pyyaml" else name for name in names}

    needed = named(project["dependencies"])
    extras = project["optional-dependencies"]
    optional = named([text for name in ("lm-eval", "ray", "trackio", "png", "serve") for text in extras[name]])
    found = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
    found -= {"compact_distill", "__future__", *sys.stdlib_module_names}
    brought = {"huggingface_hub", "markupsafe", "pyarrow", "safetensors", "tokenizers", "httpx", "sympy"}
    found -= brought | {"latex2sympy2_extended"}  # by those that are listed
    assert found <= needed | optional, found - needed - optional
    assert needed <= found, needed - found


# What is done in one place: how it shows in the code, and where it may.
HOMES = {
    "locks": (r"\bfcntl\b|filelock", {"runs/files.py"}),
    # The store's rows count by their digest and are found by their offset; the other two read a pipe.
    "lines of JSONL": (
        r"json\.loads\((?!.*read_text).*line",
        {"runs/files.py", "teachers/store.py", "answers/compare.py", "answers/mathworker.py"},
    ),
    # The other two put signals back.
    "what closes": (r"def __exit__", {"records.py", "training/callbacks.py", "study/jobs.py"}),
    "choice of a device": (r"backends\.mps", {"runs/environment.py"}),
    "peak memory": (r"ru_maxrss|max_memory_allocated", {"runs/environment.py"}),
    "tables of text": (r"\.[lr]just\(", {"runs/progress.py"}),
    # The card shows the call to its readers.
    "local generation": (r"past_key_values|\.generate\(", {"students/generate.py", "training/export.py"}),
    "seeds from names": (r"0x7FFFFFFF", {"runs/files.py"}),
    "longest example": (r"\b2560\b", {"config/models.py"}),
    "what a student is": (r"def (student|weights|folder)_hash\b", {"students/identity.py"}),
}


def test_each_concept_has_one_home():
    astray = {}
    for concept, (sign, homes) in HOMES.items():
        found = {p.relative_to(PACKAGE).as_posix() for p in FILES if re.search(sign, p.read_text(encoding="utf-8"))}
        if found - homes:
            astray[concept] = sorted(found - homes)
        assert found, f"{concept}: nothing in the code is {sign}"
    assert astray == {}


def test_nine_modules_of_ten_have_a_test_file_of_their_name():
    modules = [path.relative_to(PACKAGE) for path in FILES if path.name != "__init__.py"]
    missing = [str(m) for m in modules if not (ROOT / "tests" / m.parent / f"test_{m.name}").is_file()]
    assert len(missing) <= (1 - MIRRORED) * len(modules), missing


def test_a_class_name_means_one_thing():
    names = [node.name for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef)]
    public = [name for name in names if not name.startswith("_")]
    assert sorted({name for name in public if public.count(name) > 1}) == []
