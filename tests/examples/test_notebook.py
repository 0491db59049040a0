"""The quickstart notebook runs top to bottom, here on a tiny student, with its figures inline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from models import byte_level_tokenizer, save_student, tiny_model

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "notebooks" / "quickstart.ipynb"


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
