"""The documentation: it builds without a warning, its commands exist, and those marked as run are run here.

A fenced block of commands or Python is preceded by `<!-- run: NAME -->` (a page's blocks run in one folder, in order)
or by `<!-- not run: why -->`. A block whose first line is the comment of a file's name is written there. The hub's
students that the pages name are a tiny one here. YAML blocks are read as what they are: a run, a study, a benchmark.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer.main
import yaml

import compact_distill
from compact_distill.cli import app
from compact_distill.config.file import config_from
from compact_distill.evaluation.task import Task
from compact_distill.study.arms import StudyConfig
from doc_pages import FENCED, faults, mark, not_in_ci
from models import byte_level_tokenizer, save_student, tiny_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "benchmarks/README.md")),
        *(ROOT / "examples").rglob("README.md"),
    ]
)
HUB_STUDENT = "HuggingFaceTB/SmolLM2-135M-Instruct"
_FILE = re.compile(r"# ([\w-]+\.(?:py|yaml))\b")


def blocks_to_run(page: Path) -> list[re.Match[str]]:
    """The page's blocks that a test runs, and the files that stand between them."""
    text = page.read_text(encoding="utf-8")
    found = [(block, mark(text, block)) for block in FENCED.finditer(text)]
    told = [(block, own) for block, own in found if (own["kind"] == "run" if own else _FILE.match(block["text"]))]
    return [block for block, own in told if own is None or not own["what"].startswith("continuous integration")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_whether_it_is_run_and_every_command_option_and_name_in_a_page_exists(page):
    assert faults(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ("```sh\ncompact run run.yaml\n```\n", "without a mark"),
        ("1. In a list:\n\n    ```sh\n    make test\n    ```\n", "without a mark"),
        ("<!-- run: a -->\n\nSome words.\n\n```python\nprint()\n```\n", "without a mark"),
        ("<!-- run: a -->\n```shell\ncompact run run.yaml\n```\n", "of kind 'shell'"),
        ("<!-- run: a -->\n```\ncompact run run.yaml\n```\n", "of kind ''"),
        ("~~~sh\ncompact run run.yaml\n~~~\n", "another sort"),
        ("> ```sh\n> compact run run.yaml\n> ```\n", "quoted"),
        ("So:\n\n    git commit -a\n", "only indented"),
        ("So:\n\n    $ .venv/bin/compact demo\n", "only indented"),
        ("```text\ncompact run run.yaml\n```\n", "in a block of text"),
        ("```json\n{'a': 1}\n```\n", "double quotes"),
        ("Then `compact trian run.yaml`.\n", "compact trian: no such command"),
        ("Then `compact run run.yaml\n--dscard`.\n", "compact run: no option --dscard"),
        (
            "<!-- not run: a -->\n```sh\ncd a && CUDA=0 compact eval RUN [--chekpoint 50]  # so\n```\n",
            "no option --chekpoint",
        ),
        (
            "<!-- not run: a -->\n```sh\ntorchrun -n 8 --no-python compact run \\\n  --verfy run.yaml\n```\n",
            "no option --verfy",
        ),
        ("`make tset`\n", "make tset: no such target"),
        ('`make bench ARGS="--shpae small"`\n', "no option --shpae"),
        ("<!-- not run: a -->\n```sh\npython examples/gsm8k/make.py\n```\n", "no such file: examples/gsm8k/make.py"),
        ("<!-- not run: a -->\n```sh\npython examples/cluster/ray_train.py --wokers 8\n```\n", "no option --wokers"),
        ("<!-- not run: a -->\n```python\nfrom compact_distill import askk\n```\n", "has no askk"),
        (
            "<!-- not run: a -->\n```python\nfrom compact_distill import EvalConfig\nEvalConfig(limt=2)\n```\n",
            "takes no limt",
        ),
        ("<!-- not run: a -->\n```python\nprint(\n```\n", "never closed"),
    ],
)
def test_a_page_with_a_block_or_a_command_that_is_wrong_is_found(page, fault):
    (found,) = faults(page)
    assert fault in found


def test_what_is_said_to_run_in_continuous_integration_is_in_its_script():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    blocks = [(block, mark(text, block)) for text in texts for block in FENCED.finditer(text)]
    named = [block for block, own in blocks if own and own["what"].startswith("continuous integration")]
    assert [re.findall(r"^make ([a-z-]+)", block["text"], re.M) for block in named] == [["demo", "test"]]
    assert [not_in_ci(block["text"]) for block in named] == [[]]
    assert not_in_ci("make bench\n") == ["bench"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_yaml_is_a_run_a_study_or_a_benchmark(page):
    for block in FENCED.finditer(page.read_text(encoding="utf-8")):
        if block["kind"] != "yaml":
            continue
        data = yaml.safe_load(block["text"])
        if "arms" in data:
            StudyConfig.model_validate(data)
        elif "prompt" in data or "kind" in data:
            Task.model_validate(data)
        else:
            asked = {"problems": {"path": "p"}} if "teachers" in data else {"rationales": "r"}
            config_from({"student": "s", **({} if asked.keys() & data.keys() else asked), **data})


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


def _run(block: str, folder: Path, kind: str = "sh") -> None:
    block = re.sub(r"^student: \S+", "student: student", block.replace(HUB_STUDENT, "student"), flags=re.M)
    if name := _FILE.match(block):
        (folder / name[1]).write_text(block, encoding="utf-8")
        if kind == "yaml":
            return
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    start = [sys.executable, "-c"] if kind == "python" else ["bash", "-ec"]
    done = subprocess.run(
        [*start, block], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


RUN = [page for page in PAGES if any(block["kind"] != "yaml" for block in blocks_to_run(page))]


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_marked_as_run_run_in_their_order(page, place):
    if page.name in ("publish.md", "files.md"):
        _run("compact run run.yaml", place)
    for block in blocks_to_run(page):
        _run(block["text"], place, block["kind"])


@pytest.mark.parametrize("name", ["ask", "run", "load_instances", "score", "evaluate", "write_report", "Trial"])
def test_the_docstring_of_each_entrance_shows_a_run_that_works(name, place):
    said = inspect.getdoc(getattr(compact_distill, name))
    if name == "ask":  # it needs servers; tests/teachers asks small ones
        assert 'ask(\n        "problems.jsonl",' in said
        return
    _run("compact run run.yaml", place)
    (example,) = re.findall(r"```python\n(.*?)```", said, re.DOTALL)
    if name == "evaluate":
        example = (
            example.replace('"csqa_likelihood"', '"sums"')
            .replace('["sums"]', '["sums.jsonl"]', 1)
            .replace("acc_norm", "accuracy")
        )
        (place / "sums.jsonl").write_text('{"id": "s", "question": "2 + 2?", "answer": "4"}\n')
    _run(example, place, "python")


def test_the_entrances_have_the_names_that_people_look_for():
    from compact_distill import ask, evaluate, report, score

    assert report.write_report is compact_distill.write_report  # `report` is the package of all that makes pages
    assert all(callable(entrance) for entrance in (ask, score, evaluate, report.read_run))


def test_a_score_of_ones_own_is_used_as_its_page_says(place):
    blocks = list(FENCED.finditer((ROOT / "docs" / "own-score.md").read_text(encoding="utf-8")))
    settings = yaml.safe_load(next(b["text"] for b in blocks if b["kind"] == "yaml"))
    _run(blocks[0]["text"], place, "python")
    given = "student: student\nrationales: data.jsonl\noutput: runs/own\ntrain: {max_steps: 1, use_cpu: true}\n"
    (place / "own.yaml").write_text(given + yaml.safe_dump(settings))
    _run("compact run own.yaml", place)
    line = json.loads((place / "runs" / "own" / "scores.jsonl").read_text().splitlines()[0])
    assert line["extra_scores"]["brevity"] == [-20, -18]  # minus the tokens of each rationale


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
    python = (tmp_path / "site" / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert "problems a batch and device" in python  # a field of CompactConfig
    assert "how the belief in the gold answer is read" in python  # of CompatibilityConfig
    quickstart = (tmp_path / "site" / "quickstart" / "index.html").read_text(encoding="utf-8")
    assert "<small>Not run by a test: it needs a real student and some minutes;" in quickstart
    releasing = (tmp_path / "site" / "releasing" / "index.html").read_text(encoding="utf-8")
    assert re.search(r"<small>Not run by a test: publishes.</small>.*?<code.*?yanked.*?</ol>", releasing, re.S)
    for html in (tmp_path / "site").rglob("*.html"):
        assert "fonts.googleapis.com" not in html.read_text(encoding="utf-8")


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(workflow: Path) -> list[str]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_the_workflows_run_commands_that_this_repository_has():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    arguments = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.M))
    group = typer.main.get_command(app)
    lines = [line for workflow in WORKFLOWS for step in steps(workflow) for line in step.splitlines()]
    assert [line for line in lines if line.startswith((".ci/", "make ", "docker "))] == [
        "make wheel",
        ".ci/run",
        'docker build -t compact --build-arg "PIP_FLAGS=--extra-index-url https://download.pytorch.org/whl/cpu" .',
        "docker run --rm compact --version",
        "docker run --rm compact env",
    ]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "wheel" in targets
    assert "PIP_FLAGS" in arguments
    assert "env" in group.commands


def test_the_workflows_test_every_python_that_the_package_names():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (matrix,) = [
        job["strategy"]["matrix"]["python"]
        for workflow in WORKFLOWS
        for job in yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
        if "strategy" in job
    ]
    assert matrix == re.findall(r"Python :: (3\.\d+)", text)
    assert f'requires-python = ">={matrix[0]}"' in text


@pytest.mark.parametrize(
    ("tag", "entry", "cited", "publishes"),
    [
        ("v1.2.3", "1.2.3 (2026-12-01)", "1.2.3", True),
        ("v1.2.4", "1.2.3 (2026-12-01)", "1.2.3", False),
        ("v1.2.3", "1.2.3 (not released yet)", "1.2.3", False),
        ("v1.2.3", "1.2.3 (2026-12-01)", "1.2.2", False),
    ],
)
def test_a_tag_publishes_only_where_changelog_and_citation_name_its_version(tmp_path, tag, entry, cited, publishes):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "p"\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## Unreleased\n\n## {entry}\n")
    (tmp_path / "CITATION.cff").write_text(f"cff-version: 1.2.0\nversion: {cited}\n")
    check = steps(ROOT / ".github" / "workflows" / "publish.yml")[0]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "GITHUB_REF_NAME": tag, "PATH": path}
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", check], cwd=tmp_path, env=environment, check=False)
    assert (done.returncode == 0) is publishes


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


def rows_of_the_run_folder() -> list[re.Pattern[str]]:
    """The first column of docs/files.md's table as patterns; a folder stands for all that is in it."""
    table = (ROOT / "docs" / "files.md").read_text(encoding="utf-8").split("## The run folder")[1]
    names = [name for line in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`([^`]+)`", line)]
    parts = {"N": r"\d+", "DATE": r"[\dTZ:-]+", "*": r"[^/]+"}
    patterns = []
    for name in names:
        pattern = re.escape(name).replace(r"\*", "*")
        pattern = re.sub(r"\bN\b|\bDATE\b|\*", lambda found: parts[found[0]], pattern)
        patterns.append(re.compile(pattern + (".*" if name.endswith("/") else "")))
    return patterns


def undescribed(folder: Path) -> list[str]:
    rows = rows_of_the_run_folder()
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [name for name in files if not any(row.fullmatch(name) for row in rows)]


def test_every_file_of_a_run_has_a_row_in_the_table_of_files(finished, tmp_path):
    assert undescribed(finished) == []
    assert {row.pattern for row in rows_of_the_run_folder()} >= {r"\.lock", r"student/.*", r"eval/.*"}
    (tmp_path / "notes.txt").write_text("")
    assert undescribed(tmp_path) == ["notes.txt"]


def test_what_is_left_of_work_that_was_stopped_or_redone_has_a_row_too(tmp_path):
    date = "2026-11-25T21-30-05Z"
    left = (
        *("rationales/qwq.jsonl.damaged", "rationales/qwq.jsonl.lock", "rationales/qwq.jsonl"),
        *("eval/student/gsm8k.partial.jsonl", f"eval/base/gsm8k.json.{date}", f"damaged.{date}/manifest.json"),
        *(f"before.{date}-2/student/config.json", "student/checkpoint-12/complete.json"),
    )
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert undescribed(tmp_path) == []
