"""The quickstart notebook runs top to bottom, here on a tiny student, with its figures inline."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from models import byte_level_tokenizer, save_student, tiny_model

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "notebooks" / "quickstart.ipynb"


def test_the_quickstart_notebook_runs_and_shows_its_figures(tmp_path, monkeypatch):
    model = tiny_model("qwen2", layers=2, dtype=torch.float32)
    monkeypatch.setenv("COMPACT_STUDENT", str(save_student(tmp_path / "student", model, byte_level_tokenizer())))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=170, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/svg+xml" in data for data in shown) == 4
    assert any("<table>" in data.get("text/html", "") for data in shown)
    assert any("student:" in output.get("text", "") for output in outputs)


def test_the_notebook_is_committed_with_its_figures():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    if not outputs:
        pytest.fail("the notebook has no outputs; run it top to bottom before you commit it")
    text = nbformat.writes(notebook)
    assert "/tmp/" not in text
    assert "/home/" not in text


def test_its_first_cell_installs_the_package_by_its_published_name():
    first = next(cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert first.source.endswith(f"%pip install --quiet {project['name']}")


def test_the_badge_for_hosted_notebooks_is_there_as_soon_as_the_repository_has_an_address():
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"].get("Repository", "")
    repository = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)/?", address)
    pages = [(ROOT / "README.md").read_text(), nbformat.read(NOTEBOOK, as_version=4).cells[0].source]
    for text in pages:
        found = re.findall(r"https://colab\.research\.google\.com/\S+?(?=\))", text)
        path = NOTEBOOK.relative_to(ROOT).as_posix()
        expected = [f"https://colab.research.google.com/github/{repository[1]}/blob/main/{path}"] if repository else []
        assert found == expected  # without an address it would lead nowhere
