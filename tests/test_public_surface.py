"""What users import comes from `compact_distill` itself: docs and examples import from nowhere else."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import compact_distill

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
SCRIPTS = sorted((ROOT / "examples").rglob("*.py"))


def inner_imports(code: str) -> list[str]:
    """Modules below the package that code imports from."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    # The generated world is a toy beside the library; who plays with it takes it from its own package.
    return [
        name for name in found if name.startswith("compact_distill.") and not name.startswith("compact_distill.lab")
    ]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_import_from_the_public_surface_alone(path: Path) -> None:
    assert inner_imports(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_import_from_the_public_surface_alone(path: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        assert inner_imports(block) == []


def test_every_public_name_is_there_and_documented() -> None:
    assert sorted(compact_distill.__all__) == sorted(compact_distill._HOME)
    for name in compact_distill.__all__:
        assert getattr(compact_distill, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = compact_distill.nothing


def test_importing_the_package_does_not_wait_for_torch() -> None:
    code = "import sys, compact_distill; assert 'torch' not in sys.modules; assert 'score' in dir(compact_distill)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
