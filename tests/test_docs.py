"""The documentation: it builds without a warning, its commands exist, and those marked as run are run here.

A fenced `sh` block is preceded by `<!-- run: NAME -->` (a page's blocks run in one folder, in order) or by
`<!-- not run: why -->`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer.main

from compact_distill.cli import app
from models import byte_level_tokenizer, save_student, tiny_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *(ROOT / "examples").rglob("README.md")])
_FENCED = re.compile(r"^(?P<indent> *)```(?:sh|bash|console)\n(?P<text>.*?)^ *```$", re.M | re.S)
_MARK = re.compile(r"<!-- (?P<kind>run|not run): (?P<what>[^>]+) -->\s*$")


def commands(text: str) -> list[list[str]]:
    """Calls of `compact` in a page's code, as words; what stands in a sentence is no call."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    calls = []
    for line in lines:
        found = re.match(r"(?: {4}|\t)?(?:[A-Z_]+=\S+ )*compact ([a-z].*)$", line)
        if found and (line.startswith((" ", "\t")) or _in_code(text, line)):
            calls.append(re.split(r"\s#\s|\s+\[--", found[1])[0].replace("...", "").split())
    return calls


def _in_code(text: str, line: str) -> bool:
    return any(line in block["text"].splitlines() for block in _FENCED.finditer(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_in_the_documentation_exists(page):
    group = typer.main.get_command(app)
    for name, *words in commands(page.read_text(encoding="utf-8")):
        assert name in group.commands, f"compact {name}"
        known = {
            option
            for parameter in group.commands[name].params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        known |= {"-h", "--help"}
        unknown = [word for word in words if word.startswith("-") and word.split("=")[0] not in known]
        assert not unknown, f"compact {name}: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_commands_says_whether_it_is_run(page):
    text = page.read_text(encoding="utf-8")
    for block in _FENCED.finditer(text):
        assert _MARK.search(text[: block.start()]), f"no mark before:\n{block['text']}"


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with the files that the pages speak of: run.yaml, data.jsonl, and a finished run of a tiny student."""
    folder = tmp_path_factory.mktemp("docs")
    save_student(folder / "student", tiny_model("qwen2", layers=2, dtype=torch.float32), byte_level_tokenizer())
    row = re.search(r"```json\n(.*?)\n```", (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8"), re.S)
    (folder / "data.jsonl").write_text(row[1] + "\n")
    (folder / "run.yaml").write_text(
        "student: student\nrationales: data.jsonl\ntrain: {max_steps: 2, use_cpu: true, learning_rate: 0.01}\n"
    )
    return folder


def _run(block: str, folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        ["bash", "-ec", block], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.mark.parametrize("page", ["quickstart.md", "own-data.md", "publish.md"])
def test_blocks_marked_as_run_run_in_their_order(page, place):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = [b["text"] for b in _FENCED.finditer(text) if "<!-- run:" in text[: b.start()].rstrip().splitlines()[-1]]
    assert blocks
    for block in blocks:
        if page == "publish.md":
            _run("compact run run.yaml", place)
        _run(block, place)


def test_the_site_builds_without_a_warning(tmp_path):
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    page = (tmp_path / "site" / "reference" / "configuration" / "index.html").read_text(encoding="utf-8")
    assert "compatibility.estimator" in page
    for html in (tmp_path / "site").rglob("*.html"):
        assert "fonts.googleapis.com" not in html.read_text(encoding="utf-8")


def test_the_citation_names_the_packages_version():
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text().splitlines()


def test_the_changelog_is_grouped_and_has_the_packages_version_and_a_place_for_what_comes():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    titles, *_ = re.split(r"^## ", text, flags=re.M)
    entries = re.split(r"^## ", text.removeprefix(titles), flags=re.M)[1:]
    assert entries[0].startswith("Unreleased\n")
    assert entries[1].startswith((f"{version} (20", f"{version} (not released yet)"))
    for entry in entries:
        head, *groups = re.split(r"^### ", entry, flags=re.M)
        assert not re.search(r"^- ", head, re.M), f"a line outside of the groups of {head.splitlines()[0]}"
        names = [group.splitlines()[0] for group in groups]
        known = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
        assert names == [name for name in known if name in names], names
