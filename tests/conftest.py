"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real survey files; skips the test if there is none."""
    folder = Path(os.environ.get("HPCSPEC_REAL_DATA") or Path(__file__).parents[1] / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real survey files at {folder}: set HPCSPEC_REAL_DATA to the folder that holds them")
    return folder
