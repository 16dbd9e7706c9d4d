"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcspec.simulate import simulate
from hpcspec.submit import main

from .tiny import CONFIG, COUNTS, Outcome, Submit, Tiny, cli, contained


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real survey files; skips the test if there is none."""
    folder = Path(os.environ.get("HPCSPEC_REAL_DATA") or Path(__file__).parents[1] / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real survey files at {folder}: set HPCSPEC_REAL_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A pipeline run to its end through the command line by submitit's local executor, two ranks, ZeRO-2. Tests that change
    the run work on a copy."""
    cwd = tmp_path_factory.mktemp("tiny")
    inputs, config = cwd / "simulated surveys", cwd / "tiny.yaml"
    simulate(inputs, COUNTS, 1)
    (inputs / "apogee/empty.fits").touch()
    shutil.copy(min((inputs / "apogee").glob("apStar-*.fits")), inputs / "apogee/zz-duplicate.fits")
    config.write_text(CONFIG.format(inputs=inputs))
    began = time.monotonic()
    done = cli("pipeline", "--config", config, "--executor", "local", cwd=cwd)
    assert done.stderr == ""
    return Tiny(cwd, config, inputs, done.stdout, time.monotonic() - began)


@pytest.fixture()
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Submit]:
    """The command line in this process, typed in `tmp_path`: submit(*arguments) is (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def typed(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        return main([str(a) for a in arguments]), *capfd.readouterr()

    with contained():
        yield typed
