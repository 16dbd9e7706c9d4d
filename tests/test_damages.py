"""Damaged survey files of every layout, beside sound ones, through the whole ingest: whatever is wrong with a file, it costs
its own objects at most, says so in the quarantine, and nothing that comes out is not what was in.

A sample of all damages is tried, the same one every time; HPCSPEC_ALL_DAMAGES=1 tries them all (some minutes), and
HPCSPEC_DAMAGES_SEED=1 other places and values.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hpcspec.surveys import SURVEYS
from hpcspec.surveys.observation import Observation
from tests.damages.copies import Kind
from tests.damages.damage import PATHS, Damage
from tests.damages.kinds import KINDS, MOVED, damages
from tests.damages.trial import Outcome, Trials, invalid
from tests.making import unlike

SOUND = 2  # copies of each layout that stay as they are
SAMPLE, GROUP = 6, 16
SEED = int(os.environ.get("HPCSPEC_DAMAGES_SEED", 0))
# What readers have hung on, died of or taken for good before: always tried.
CAUGHT = {"card GCOUNT = -7", "all 3e+38", "huge", "one 1e+300", "size", "size -512", "declared", "overstated", "not UTF-8",
          "newline", "long text", "flip middle"}  # fmt: skip
KEEPS = {"desi", "apogee", "galah", "gaia"}  # a damaged companion costs what it tells of the objects, but none of them


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    one = Trials()
    yield one
    one.close()


def sample(name: str) -> list[Damage]:
    """Some of a layout's damages, the same ones every time."""
    every = damages(name)
    if os.environ.get("HPCSPEC_ALL_DAMAGES"):
        return every
    chosen = np.random.default_rng([zlib.crc32(name.encode()), SEED]).permutation(len(every))[:SAMPLE].tolist()
    return [d for i, d in enumerate(every) if i in chosen or d.name in CAUGHT]


CASES = [pytest.param(name, start, id=f"{name}-{start}") for name in KINDS for start in range(0, len(sample(name)), GROUP)]


def readable(reason: str) -> bool:
    """A line for people: no traceback, no names of Python's classes."""
    told = reason and reason.isprintable() and len(reason) <= 400 and "Traceback" not in reason
    return bool(told) and not re.search(r"\b[A-Z]\w*(Error|Exception|Warning)\b|<class|object at 0x", reason)


def alike(a: object, b: object) -> bool:
    """Whether values of meta are the same; what a value is depends on its neighbours, for a column has one type."""
    try:
        return str(a) == str(b) or float(a) == float(b)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def changed(one: Observation, before: Observation) -> list[str]:
    """The fields in which an object is not what it was."""
    found = [f for f in unlike(one, before) if f != "meta"]
    same = one.meta.keys() == before.meta.keys() and all(alike(v, before.meta[k]) for k, v in one.meta.items())
    return found if same else [*found, "meta"]


def invented(one: Observation, before: Observation) -> list[str]:
    """What a damaged companion tells of an object that it did not tell before."""
    found = [f for f in unlike(one, before) if f not in ("meta", "scalars", "ra", "dec")]
    found += [n for n, pair in one.scalars.items() if repr(pair) != repr(before.scalars.get(n))]
    known = {**before.meta, "position": one.meta.get("position"), "rows_skipped": one.meta.get("rows_skipped")}
    return found + [n for n, value in one.meta.items() if not alike(value, known.get(n))]


def of_books(outcome: Outcome, folder: Path) -> list[str]:
    """What is wrong with the books and the quarantine."""
    assert outcome.counts
    counts, rows = outcome.counts, outcome.quarantined
    faults = [f"row {row}" for row in rows if not (row["path"].startswith(str(folder)) and readable(row["reason"]))]
    if counts.rows_in != counts.objects + counts.quarantined or len(rows) != counts.quarantined:
        faults.append(f"the books don't balance: {counts}, {len(rows)} quarantined rows")
    if len(outcome.objects) != counts.objects:
        faults.append(f"{counts} but {len(outcome.objects)} objects")
    return faults


def of_objects(outcome: Outcome, kind: Kind, folder: Path, done: dict[str, Damage]) -> list[str]:
    """What is wrong with the objects. done: what was done to which file, by its name below `folder`."""
    faults = []
    differ = dict.fromkeys(done, 0)
    for object_id, before in outcome.sound.items():
        own, *_ = files = outcome.files[object_id]
        near = [f for f in files if not kind.companion or Path(f).parent == Path(own).parent]
        hit = next((f for f in near if f in done), "")
        one = outcome.objects.get(object_id)
        if one is None:
            if not hit or (kind.companion and kind.survey in KEEPS and not done[hit].loose):
                faults.append(f"{object_id} is lost, {hit} {done.get(hit)}")
        elif not hit:
            faults += [f"{object_id} of a sound file: {what}" for what in changed(one, before)]
        elif kind.companion:
            found = invented(one, before)
            faults += [f"{object_id} beside {hit} {done[hit]}: {w}" for w in found if not done[hit].loose or "." in w]
        elif found := [f for f in changed(one, before) if f != "meta"]:
            differ[hit] += 1
            faults += [] if done[hit].loose else [f"{object_id} of {hit} {done[hit]}: {what}" for what in found]
    if kind.by_line:
        faults += [f"{n} objects differ: {done[hit]}" for hit, n in differ.items() if n > 1 and done[hit].by_line]
    for object_id, one in outcome.objects.items():
        faults += [f"{object_id!r}: {what}" for what in invalid(one)]
        where = os.path.relpath(outcome.origin[object_id], folder)
        if object_id not in outcome.sound and where in {f for files in outcome.files.values() for f in files} - set(done):
            faults.append(f"{object_id!r} of {where} was not there before")
        elif object_id not in outcome.sound and where in done and not done[where].loose:
            faults.append(f"{object_id!r} was not there before: {done[where]}")
    return faults


def of_files(outcome: Outcome, kind: Kind, folder: Path, done: dict[str, Damage]) -> list[str]:
    """Files of which nothing is told: neither an object nor a quarantined row."""
    told = {os.fsencode(p) for p in outcome.origin.values()} | {r["path"].encode() for r in outcome.quarantined}
    still = [folder / name for name in done if (folder / name).is_file() and not kind.companion]
    return [f"nothing is told of {p}: {done[str(p.relative_to(folder))]}" for p in still
            if os.fsencode(p) not in told and kind.survey != "galah"]  # fmt: skip


def judge(outcome: Outcome, kind: Kind, folder: Path, done: dict[str, Damage]) -> list[str]:
    """What is wrong with an outcome."""
    if outcome.counts is None:
        return outcome.faults or [f"refused: {outcome.refused}"]
    looks = (of_books(outcome, folder), of_objects(outcome, kind, folder, done), of_files(outcome, kind, folder, done))
    return [*outcome.faults, *(fault for look in looks for fault in look)]


def damaged(name: str, group: list[Damage], start: int, place: Path) -> dict[str, Damage]:
    """`place`/sound with a copy for each damage and SOUND more, and `place`/damaged; what was done to which file."""
    kind, done = KINDS[name], {}
    (place / "sound").mkdir()
    paths = [kind.write(place / "sound", k) for k in range(SOUND + len(group))]
    shutil.copytree(place / "sound", place / "damaged")
    for k, damage in enumerate(group, SOUND):
        relative = paths[k].relative_to(place / "sound")
        damage.harm(place / "damaged" / relative, np.random.default_rng([zlib.crc32(name.encode()), start + k, SEED]))
        done[str(relative)] = damage
    return done


@pytest.mark.parametrize(("name", "start"), CASES)
def test_a_damaged_file_costs_its_own_objects_at_most(name: str, start: int, trials: Trials, tmp_path: Path) -> None:
    kind = KINDS[name]
    done = damaged(name, sample(name)[start : start + GROUP], start, tmp_path)
    outcome = trials.run(kind.survey, tmp_path / "sound", tmp_path / "damaged", tmp_path / "out", kind.epochs)
    faults = judge(outcome, kind, tmp_path / "damaged", done)
    assert not faults, "\n".join(faults)


def test_there_are_enough_damages() -> None:
    assert sum(len(sample(name)) for name in KINDS) >= 300
    assert {kind.survey for kind in KINDS.values()} >= SURVEYS.keys() - {"generic"}


@pytest.fixture()
def open_folder() -> Iterator[Path]:
    """A folder that any user may look into; pytest's own are for one user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", sorted(MOVED))
def test_what_may_not_be_read(name: str, trials: Trials, open_folder: Path) -> None:
    """A file, a folder, and a folder whose files have names only."""
    kind = KINDS[name]
    done = damaged(name, [d for d in PATHS if d.name == "not readable"], 0, open_folder)
    for k, mode in ((5, 0), (6, 0o444)):
        hidden = open_folder / "damaged" / f"hidden{mode}"
        hidden.mkdir()
        kind.write(hidden, k)
        hidden.chmod(mode)
    sound, source = open_folder / "sound", open_folder / "damaged"
    outcome = trials.run(kind.survey, sound, source, open_folder / "out", kind.epochs, nobody=True)
    faults = judge(outcome, kind, source, done)
    assert not faults, "\n".join(faults)
    assert any("ermission" in row["reason"] for row in outcome.quarantined), outcome.quarantined
