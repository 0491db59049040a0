"""Write the repository's public address wherever it stands, from `Repository` under `[project.urls]` of pyproject.toml.

`make address` runs it once the address is known, and again should it change: `repository-code` in CITATION.cff, and the
badge for hosted notebooks on top of README.md and of the notebook, which only GitHub's addresses have. Without an
address all of them go: they would lead nowhere. The site's link to the repository follows by itself (hooks.py).
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

NOTEBOOK = "examples/notebooks/quickstart.ipynb"
_BADGE = re.compile(r"^\[!\[Open in Colab\]\(.*\)\]\(.*\)\n\n?", re.M)


def address(root: Path) -> str | None:
    """The repository's address as pyproject.toml has it."""
    found: str | None = tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"].get("Repository")
    return found.rstrip("/") if found else None


def badge(repository: str | None) -> str:
    """The line that opens the notebook on Colab, and the empty line after it; nothing where Colab cannot find it."""
    place = re.fullmatch(r"https://github\.com/([^/]+/[^/]+)", repository or "")
    if not place:
        return ""
    picture = "https://img.shields.io/badge/open%20in-Colab-f9ab00"
    return (
        f"[![Open in Colab]({picture})](https://colab.research.google.com/github/{place[1]}/blob/main/{NOTEBOOK})\n\n"
    )


def with_badge(markdown: str, line: str) -> str:
    """The text with the badge below its title."""
    title, rest = _BADGE.sub("", markdown).split("\n\n", 1)
    return f"{title}\n\n{line}{rest}"


def fill_in(root: Path) -> None:
    """Bring CITATION.cff, README.md and the notebook to what pyproject.toml says."""
    repository = address(root)
    citation = re.sub(r"^repository-code: .*\n", "", (root / "CITATION.cff").read_text(encoding="utf-8"), flags=re.M)
    if repository:
        citation = re.sub(r"^license: .*\n", rf'\g<0>repository-code: "{repository}"\n', citation, count=1, flags=re.M)
    (root / "CITATION.cff").write_text(citation, encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    (root / "README.md").write_text(with_badge(readme, badge(repository)), encoding="utf-8")
    notebook = json.loads((root / NOTEBOOK).read_text(encoding="utf-8"))
    first = notebook["cells"][0]
    first["source"] = with_badge("".join(first["source"]), badge(repository)).splitlines(keepends=True)
    (root / NOTEBOOK).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    fill_in(Path(__file__).resolve().parents[1])
