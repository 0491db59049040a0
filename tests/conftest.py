"""What all tests share: where the real data is, and quiet libraries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network shall fail at once


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data: $COMPACT_DATA, else shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("COMPACT_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real data not found: set COMPACT_DATA to its folder (looked at {folder})")
    return folder
