"""The quickstart notebook runs top to bottom, here on a tiny student, with its figures inline."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
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
    # Warnings and progress name folders of whoever ran it.
    assert not [output for output in outputs if output.get("name") == "stderr"]
    text = nbformat.writes(notebook)
    assert "/tmp/" not in text
    assert "/home/" not in text


def test_its_first_cell_installs_the_package_by_its_published_name():
    first = next(cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert first.source.endswith(f"%pip install --quiet {project['name']}")


def pages_with_the_address(root: Path) -> list[str]:
    first = nbformat.read(root / NOTEBOOK.relative_to(ROOT), as_version=4).cells[0].source
    return [(root / "README.md").read_text(), first, (root / "CITATION.cff").read_text()]


@pytest.fixture
def copy_with(tmp_path):
    """The files that name the repository's address, in a folder of their own, with the one that is asked for."""

    def made(address: str) -> Path:
        for name in ("pyproject.toml", "README.md", "CITATION.cff", "docs/address.py", NOTEBOOK.relative_to(ROOT)):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
        project = re.sub(r"^Repository = .*\n", "", (ROOT / "pyproject.toml").read_text(), flags=re.M)
        (tmp_path / "pyproject.toml").write_text(project.replace("[project.urls]\n", f"[project.urls]\n{address}"))
        for _ in range(2):  # once more changes nothing
            subprocess.run([sys.executable, tmp_path / "docs" / "address.py"], check=True)
        return tmp_path

    return made


def test_what_names_the_repository_is_as_pyproject_says(copy_with):
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"].get("Repository")
    made = copy_with(f'Repository = "{address}"\n' if address else "")
    assert pages_with_the_address(made) == pages_with_the_address(ROOT)  # else: `make address`
    assert (made / NOTEBOOK.relative_to(ROOT)).read_bytes() == NOTEBOOK.read_bytes()


def test_an_address_stands_in_one_place_and_goes_to_all_others(copy_with):
    link = "https://colab.research.google.com/github/they/it/blob/main/examples/notebooks/quickstart.ipynb"
    readme, first, citation = pages_with_the_address(copy_with('Repository = "https://github.com/they/it/"\n'))
    assert readme.startswith("# compact-distill\n\n[![Open in Colab](")
    assert [readme.count(link), first.count(link)] == [1, 1]
    assert yaml.safe_load(citation)["repository-code"] == "https://github.com/they/it"
    readme, first, citation = pages_with_the_address(copy_with('Repository = "https://gitlab.com/they/it"\n'))
    assert "Colab" not in readme + first
    assert yaml.safe_load(citation)["repository-code"] == "https://gitlab.com/they/it"
    assert "repository-code" not in pages_with_the_address(copy_with(""))[2]
