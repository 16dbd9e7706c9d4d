"""A pipeline small enough to run through in a test: two simulated surveys, a toy model, a few steps."""

from __future__ import annotations

import csv
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from hpcspec.training.ranks import TORCH_ENVIRONMENT

CONFIG = """\
name: tiny
surveys:
  desi:
    input: "{inputs}/desi"
    labels: {{path: "{inputs}/desi/labels.csv", object_class: class, parameters: {{teff: teff, z: z}}}}
  apogee:
    input: "{inputs}/apogee"
    labels: {{path: "{inputs}/apogee/labels.csv", object_class: class, parameters: {{teff: teff}}}}
model: {{patch: 64, width: 16, layers: 1, decoder_layers: 1, heads: 2, frequencies: 8}}
training: {{steps: 4, tokens_per_batch: 2048, lanes: 4, log_every: 2, save_every: 2, zero: {{stage: 2}}}}
adapt: {{steps: 20, held_out: 0.3, calibration: 0.3, threads: 1}}
catalog: {{tasks: 2, pieces: 4, tokens_per_batch: 1024}}
"""
COUNTS = {"desi": 60, "apogee": 40}


def cli(*arguments: str | Path, cwd: Path, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """`python -m hpcspec.submit` in the folder `cwd`, with an exit code that must be `check` unless that is None."""
    command = [sys.executable, "-m", "hpcspec.submit", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert check in (None, done.returncode), f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def label_ids(folder: Path) -> list[str]:
    """The identifiers in a simulated survey's label table, sorted."""
    with open(folder / "labels.csv", newline="") as file:
        return sorted(row["object_id"] for row in csv.DictReader(file))


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below a folder."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


@dataclass(frozen=True)
class Tiny:
    """A finished pipeline: the folder it was typed in, its configuration, its survey files, its output and its seconds."""

    cwd: Path
    config: Path
    inputs: Path
    output: str
    seconds: float

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.cwd / "runs" / "tiny"

    def copy(self, folder: Path) -> Path:
        """A run folder that a test may spoil; it works on the same survey files."""
        shutil.copytree(self.run, folder)
        return folder


Outcome = tuple[int, str, str]
Submit = Callable[..., Outcome]


@contextmanager
def contained() -> Iterator[None]:
    """What a stage that runs in this process leaves behind in it is undone: log handlers, torch's threads, its rank."""
    environment = {name: os.environ.get(name) for name in TORCH_ENVIRONMENT}
    log, threads = logging.getLogger("hpcspec"), torch.get_num_threads()
    handlers, propagate, level = log.handlers, log.propagate, log.level
    try:
        yield
    finally:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)
        torch.set_num_threads(threads)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
