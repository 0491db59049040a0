"""Fixtures of the configuration: a run's YAML as text, read or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from compact_distill.config.file import load_config
from compact_distill.config.models import RunConfig
from compact_distill.errors import ConfigError


@pytest.fixture
def problems_of(tmp_path: Path):
    """The list of problems that a YAML text gives."""

    def read(text: str, **overrides) -> list[str]:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_config(path, overrides)
        return [problem.replace(f"{path}", "run.yaml") for problem in caught.value.problems]

    return read


@pytest.fixture
def load(tmp_path: Path):
    def read(text: str, overrides=None) -> RunConfig:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides)

    return read
