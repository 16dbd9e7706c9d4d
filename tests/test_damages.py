"""Damaged survey files of every layout, beside sound ones, through the whole ingest: whatever is wrong with a file, it costs
its own objects at most, and says so in the quarantine."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.damages.copies import KINDS
from tests.damages.harm import Damage, damages
from tests.damages.trial import Outcome, Trials, invalid
from tests.making import unlike

SOUND = 2  # copies of each layout that stay as they are
SAMPLE, GROUP = 12, 16


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    one = Trials()
    yield one
    one.close()


def sample(name: str) -> list[Damage]:
    """Some of a layout's damages, the same ones every time."""
    every = damages(name, KINDS[name])
    if os.environ.get("HPCSPEC_ALL_DAMAGES"):
        return every
    chosen = np.random.default_rng(zlib.crc32(name.encode())).permutation(len(every))[:SAMPLE]
    return [every[i] for i in sorted(chosen.tolist())]


CASES = [(name, start) for name in KINDS for start in range(0, len(sample(name)), GROUP)]


def readable(reason: str) -> bool:
    """A line for people: no traceback, no names of Python's classes."""
    told = reason and reason.isprintable() and len(reason) <= 600 and "Traceback" not in reason
    return bool(told) and not re.search(r"\b[A-Z]\w*(Error|Exception|Warning)\b|<class|object at 0x", reason)


def judge(outcome: Outcome, loose: dict[str, bool], folder: Path, touched: dict[str, str]) -> list[str]:
    """What is wrong with an outcome. loose: whether an object may have changed, by its identifier, for objects of damaged
    files; touched: files that were damaged, and how."""
    faults = list(outcome.faults)
    if outcome.counts is None:
        return faults or [f"refused: {outcome.refused}"]
    counts, rows = outcome.counts, outcome.quarantined
    if not (counts.rows_in == counts.objects + counts.quarantined and len(outcome.objects) == counts.objects):
        faults.append(f"the books don't balance: {counts}, {len(outcome.objects)} objects")
    if len(rows) != counts.quarantined:
        faults.append(f"{len(rows)} quarantined rows, {counts.quarantined} counted")
    for row in rows:
        if not row["path"].startswith(str(folder)):
            faults.append(f"path {row['path']!r}")
        if not readable(row["reason"]):
            faults.append(f"unreadable reason {row['reason']!r} of {row['path']!r}")
    for object_id, one in outcome.objects.items():
        where = f"{object_id!r} of {outcome.origin[object_id]} ({touched.get(outcome.origin[object_id], '')})"
        faults += [f"{where}: invalid {what}" for what in invalid(one)]
        before = outcome.sound.get(object_id)
        if before is None:
            if not touched.get(outcome.origin[object_id]):
                faults.append(f"{where}: unheard of")
        elif not loose.get(object_id, False) and (changed := [f for f in unlike(one, before) if f != "meta"]):
            faults.append(f"{where}: changed in {changed}")
    return faults
