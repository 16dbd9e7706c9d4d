"""One ingest of a folder, in a process of its own that is killed when it takes too long, and what came of it."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from hpcspec.errors import UserError
from hpcspec.shards.doctor import examine
from hpcspec.shards.format import shard_paths
from hpcspec.shards.ingest import Counts, ingest, quarantined_rows
from hpcspec.shards.objects import collect
from hpcspec.shards.shard import Shard
from hpcspec.shards.variability import with_variability
from hpcspec.stream.batch import Batch
from hpcspec.stream.batches import ordered_batches, packs
from hpcspec.stream.index import open_index
from hpcspec.stream.stream import Stream
from hpcspec.stream.tokens import Hiding, tokenize
from hpcspec.stream.vocabulary import KINDS, vocabulary
from hpcspec.surveys import SURVEYS, discover, read
from hpcspec.surveys.observation import Observation
from tests.damages.copies import Kind
from tests.making import stored

SECONDS = 60  # for a dozen files; less than one is usual
MEMORY = 2 << 30  # of addresses, beyond what imports take: what asks for more is refused, not killed
PATCH, EPOCHS, BUDGET = 16, 4, 64
NOBODY = 65534
ROOT = Path(__file__).parents[2]
PRELOAD = [*(f"hpcspec.surveys.{name}" for name in (*SURVEYS, "hats", "multimodal_hdf5")), "astropy.io.votable",
           "astropy.io.ascii", *(["specutils"] if importlib.util.find_spec("specutils") else [])]  # fmt: skip


@dataclass
class Outcome:
    """What an ingest gave: its books, the objects by identifier and the files they came from, the quarantined rows, what was
    found to be wrong, or the error it ended with; and the objects as they were before, with their files, and the identifiers of
    rows that were quarantined before."""

    counts: Counts | None = None
    objects: dict[str, Observation] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    sound: dict[str, Observation] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    quarantined: list[dict[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unusable: set[str] = field(default_factory=set)
    refused: str = ""


class Trials:
    """A process that has everything imported and forks one of its own for each ingest; kills it when it takes too long."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", "-c", "from tests.damages.trial import serve; serve()"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, kind: Kind, sound: Path, source: Path, out: Path, nobody: bool = False) -> Outcome:
        """Ingest `source` into `out` and look at everything that was made of it; the outcome's faults say what went wrong,
        also when the process hung or died. `nobody`: as a user who may not read everything."""
        assert self._process.stdin and self._process.stdout
        result = out.with_name(out.name + ".outcome")
        trial = {"survey": kind.survey, "sound": str(sound), "source": str(source), "out": str(out), "epochs": kind.epochs,
                 "in_place": kind.in_place, "nobody": nobody, "result": str(result)}  # fmt: skip
        print(json.dumps(trial), file=self._process.stdin, flush=True)
        ended = self._process.stdout.readline().strip()
        return pickle.loads(result.read_bytes()) if ended == "exit 0" else Outcome(faults=[ended or "no answer"])

    def close(self) -> None:
        self._process.communicate()


def serve() -> None:
    """Trials as JSON lines on stdin; a line each on stdout says how it ended."""
    for name in PRELOAD:
        importlib.import_module(name)
    importlib.import_module("hpcspec.surveys.xp")._design()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(**json.loads(line))
        deadline = time.monotonic() + SECONDS
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        code = os.waitstatus_to_exitcode(ended[1])
        print("exit 0" if code == 0 else f"hung for {SECONDS} s" if code == -signal.SIGKILL else f"died: {code}", flush=True)


def _run(survey: str, sound: str, source: str, out: str, epochs: bool, in_place: bool, nobody: bool, result: str) -> None:
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    outcome = Outcome()
    try:
        with redirect_stdout(io.StringIO()):
            _read(outcome, survey, Path(sound), epochs)
            if nobody and os.getuid() == 0:
                os.setuid(NOBODY)
            _ingest(outcome, survey, Path(source), Path(out), epochs, in_place)
    except UserError as error:
        outcome.refused = str(error)
        outcome.quarantined = quarantined_rows(Path(out))
    except BaseException:
        outcome.faults.append(traceback.format_exc())
    Path(result).write_bytes(pickle.dumps(outcome))
    os._exit(0)


def _read(outcome: Outcome, survey: str, folder: Path, epochs: bool) -> None:
    """The objects of sound files as a shard would give them back."""
    found: list[Observation] = []
    for source in discover(survey, folder, epochs):
        items = list(read(survey, source))
        ones = [with_variability(item) for item in items if isinstance(item, Observation)]
        outcome.unusable |= {item.object_id for item in items if not isinstance(item, Observation)}
        outcome.files |= {one.object_id: [str(p.relative_to(folder)) for p in source.paths] for one in ones}
        found += ones
    objects = collect([(one, 0, 0) for one in found], ["x"])
    outcome.sound = {one.object_id: replace(one, survey=survey) for one in objects}


def _ingest(outcome: Outcome, survey: str, source: Path, out: Path, epochs: bool, in_place: bool) -> None:
    outcome.counts = ingest(survey, source, out, 64.0, epochs=epochs, in_place=in_place)
    outcome.quarantined = quarantined_rows(out)
    if not examine(out):
        outcome.faults.append("the doctor finds fault with the shards")
    for path in shard_paths(out):
        with Shard.open(path) as shard:
            paths = shard.sources()
        for one, number, _ in stored(path):
            outcome.objects[one.object_id], outcome.origin[one.object_id] = one, paths[number]
    index = open_index(shard_paths(out))
    words = vocabulary(index.shards, PATCH, EPOCHS, KINDS[1:])
    for batch in ordered_batches(index, np.arange(len(index)), words, BUDGET):
        outcome.faults += _of_tokens(batch)
    stream = Stream(index, seed=1, lanes=1, block=8, shuffle_blocks=2, vocabulary=words)
    try:
        for pack in islice(packs(stream, BUDGET), 2):
            outcome.faults += _of_tokens(tokenize(pack, words, Hiding(0.3, 0.7, 0.3)))
    finally:
        stream.close()


def _of_tokens(batch: Batch) -> list[str]:
    """What is not finite in a batch but the error of a bad sample, which is inf, and the phase at an unknown period."""
    finite = {"spectra": ("values", "coordinates"), "curves": ("values", "times"), "scalars": ("value", "error")}
    faults = [f"{name} of {group} are not finite" for group, names in finite.items() for name in names
              if not bool(torch.isfinite(getattr(getattr(batch, group), name)).all())]  # fmt: skip
    sound = ((batch.spectra.sigma > 0).all(), (batch.curves.sigma > 0).all(), (batch.scalars.error >= 0).all())
    return faults if all(map(bool, sound)) else [*faults, "an error of a token is not positive"]


def invalid(one: Observation) -> list[str]:
    """What of an object no reader may give."""
    faults = []
    for arm in one.arms:
        w = arm.wavelength
        if not (np.isfinite(w).all() and (w > 0).all() and (np.diff(w) > 0).all()):
            faults.append(f"wavelengths of arm {arm.name}")
    for curve in one.curves:
        if not (np.isfinite(curve.time).all() and (np.diff(curve.time) >= 0).all()):
            faults.append(f"times of light curve {curve.band}")
    for name, values, ivar in [(a.name, a.flux, a.ivar) for a in one.arms] + [(c.band, c.value, c.ivar) for c in one.curves]:
        if not (np.isfinite(values).all() and np.isfinite(ivar).all() and (ivar >= 0).all()):
            faults.append(f"samples of {name}")
    if not all(np.isfinite(v) and not np.isinf(e) for v, e in one.scalars.values()):
        faults.append("scalars")
    if not one.object_id or not one.object_id.isprintable():
        faults.append("identifier")
    return faults
