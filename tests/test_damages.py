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
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hpcspec.surveys import SURVEYS
from hpcspec.surveys.observation import Observation
from tests.damages.copies import Kind
from tests.damages.damage import PATHS, TRUNCATE, Damage
from tests.damages.in_columns import same_spectra
from tests.damages.kinds import KINDS, MOVED, damages
from tests.damages.trial import Outcome, Trials, invalid
from tests.making import unlike

SOUND = 2  # copies of each layout that stay as they are
SAMPLE, GROUP = 3, 16
SEED = int(os.environ.get("HPCSPEC_DAMAGES_SEED", 0))
# What readers have hung on, died of or taken for good before: always tried.
CAUGHT = {"card GCOUNT = -7", "all 3e+38", "huge", "one 1e+300", "size", "size -512", "declared", "overstated", "not UTF-8",
          "newline", "long text", "flip middle"}  # fmt: skip
# What must be among them whatever the seed, in the layouts that stand for all.
REQUIRED = {"same ids", "rows twice", "one NaN", "unsorted wavelengths", "repeated wavelengths", "negative wavelengths",
            "no units", "retyped 1", "text 1", "lost 1", "without a column 1", "truncated 1", "card NAXIS2 = 0",
            "card NAXIS1 = 10000000", "dangling link", "pipe", "link to itself", "link to the folder"}  # fmt: skip
STANDING = MOVED | {"gaia_fits", "gaia_parquet", "many_fits", "redrock", "hdf5_in_place", "hats_in_place"}
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
    always = CAUGHT | REQUIRED if name in STANDING else CAUGHT
    return [d for i, d in enumerate(every) if i in chosen or d.name in always]


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
            untouched = kind.form in ("hdf5", "parquet") and same_spectra(folder / hit, folder.with_name("sound") / hit)
            strict = found if not done[hit].loose else [f for f in found if untouched and "." in f]
            faults += [f"{object_id} of {hit} {done[hit]}: {what}" for what in strict]
    faults += [f"{n} objects differ: {done[hit]}" for hit, n in differ.items()
               if n > 1 and (done[hit].by_row or (kind.by_line and done[hit].by_line))]  # fmt: skip
    for object_id, one in outcome.objects.items():
        faults += [f"{object_id!r}: {what}" for what in invalid(one)]
        where = os.path.relpath(outcome.origin[object_id], folder)
        if object_id not in outcome.sound and where in {f for files in outcome.files.values() for f in files} - set(done):
            faults.append(f"{object_id!r} of {where} was not there before")
        elif object_id not in outcome.sound and where in done and not done[where].loose:
            faults.append(f"{object_id!r} was not there before: {done[where]}")
    return faults


def of_losses(outcome: Outcome, kind: Kind, folder: Path, done: dict[str, Damage]) -> list[str]:
    """Objects that are gone without a line that names them, or none in particular of their file. A damaged identifier is no
    longer theirs: another line or object of the file then goes for one of them."""
    missing = {i.split("@")[0] for i in outcome.sound.keys() - outcome.objects.keys()}  # epochs of an object go together
    named = {row["object_id"].split("@")[0] for row in outcome.quarantined}
    lost: dict[str, set[str]] = defaultdict(set)
    for object_id, (own, *rest) in outcome.files.items():
        if (base := object_id.split("@")[0]) in missing - named:
            near = [f for f in done if f in (own, *rest) or (kind.companion and Path(f).parent == Path(own).parent)]
            lost[near[0] if near else own].add(base)
    faults = []
    for hit, gone in lost.items():
        paths = {str(folder / f) for f in (hit, *done) if f == hit or done[f] is done.get(hit)}
        about = [row["object_id"] for row in outcome.quarantined if row["path"] in map(shown, paths)]
        others = {i for i, p in outcome.origin.items() if p in paths} - outcome.sound.keys()
        spare = len(about) - len((missing | outcome.unusable) & set(about)) + len(others)
        if "" not in about and spare < len(gone) and not cut(folder / hit, kind, done.get(hit), about):
            faults.append(f"nothing is told of {sorted(gone)} of {hit}: {done.get(hit)}, {about}")
    return faults


def cut(path: Path, kind: Kind, damage: Damage | None, told: list[str]) -> bool:
    """Whether this is text that ends early: nobody can tell of rows after the one that the cut goes through."""
    early = damage is not None and damage.harm is TRUNCATE and kind.form == "text"
    return early and (bool(told) or path.read_bytes().endswith(b"\n"))


def of_owners(outcome: Outcome, done: dict[str, Damage], folder: Path) -> list[str]:
    """Objects that have what was measured of others, whose identifiers are theirs or of another file."""
    owner = {values: object_id for object_id, one in outcome.sound.items() for values in measured(one)}
    faults = []
    for object_id, one in outcome.objects.items():
        for other in {owner.get(values, object_id) for values in measured(one)} - {object_id}:
            where = os.path.relpath(outcome.origin[object_id], folder)
            if object_id in outcome.sound or not any(done.get(f, f) is done.get(where) for f in outcome.files[other]):
                faults.append(f"{object_id!r} of {where} has what was measured of {other}: {done.get(where)}")
    return faults


def measured(one: Observation) -> set[bytes]:
    """What an object has and no other: its spectra, light curves of more than an epoch, and coefficients."""
    coefficients = [[v for n, (v, _) in sorted(one.scalars.items()) if re.match(rf"{band}_\d", n)] for band in ("bp", "rp")]
    arrays = [*(a.flux for a in one.arms), *(c.value for c in one.curves), *map(np.array, coefficients)]
    return {values.tobytes() for values in arrays if (values != values[:1]).any()}


def shown(path: str) -> str:
    """A path as the quarantine has it."""
    return path.encode("utf-8", "backslashreplace").decode()


def of_files(outcome: Outcome, kind: Kind, folder: Path, done: dict[str, Damage]) -> list[str]:
    """Files of which nothing is told: neither an object nor a quarantined row."""
    told = {shown(p) for p in outcome.origin.values()} | {r["path"] for r in outcome.quarantined}
    still = [folder / name for name in done if (folder / name).is_file() and not kind.companion]
    return [f"nothing is told of {p}: {done[str(p.relative_to(folder))]}" for p in still
            if shown(str(p)) not in told and kind.survey != "galah"]  # fmt: skip


def judge(outcome: Outcome, kind: Kind, folder: Path, done: dict[str, Damage]) -> list[str]:
    """What is wrong with an outcome."""
    if outcome.counts is None:
        return outcome.faults or [f"refused: {outcome.refused}"]
    values = [v for one in outcome.sound.values() for v in measured(one)]
    alone = len(values) == len(set(values)) and all(map(measured, outcome.sound.values()))
    assert alone, "sound objects are not all unlike"
    looks = (of_books(outcome, folder), of_objects(outcome, kind, folder, done), of_losses(outcome, kind, folder, done),
             of_owners(outcome, done, folder), of_files(outcome, kind, folder, done))  # fmt: skip
    return [*outcome.faults, *(fault for look in looks for fault in look)]


def damaged(name: str, group: list[Damage], start: int, place: Path) -> dict[str, Damage]:
    """`place`/sound with a copy for each damage and SOUND more, and `place`/damaged; what was done to which file."""
    kind, done = KINDS[name], {}
    (place / "sound").mkdir()
    paths = [kind.write(place / "sound", k) for k in range(SOUND + len(group))]
    shutil.copytree(place / "sound", place / "damaged")
    for k, damage in enumerate(group, SOUND):
        relative = paths[k].relative_to(place / "sound")
        path = place / "damaged" / relative
        before = os.listdir(path.parent)
        damage.harm(path, np.random.default_rng([zlib.crc32(name.encode()), start + k, SEED]))
        done |= {str(relative.with_name(n)): damage for n in (path.name, *sorted({*os.listdir(path.parent)} - {*before, "kept"}))}
    return done


@pytest.mark.parametrize(("name", "start"), CASES)
def test_a_damaged_file_costs_its_own_objects_at_most(name: str, start: int, trials: Trials, tmp_path: Path) -> None:
    kind = KINDS[name]
    done = damaged(name, sample(name)[start : start + GROUP], start, tmp_path)
    outcome = trials.run(kind, tmp_path / "sound", tmp_path / "damaged", tmp_path / "out")
    faults = judge(outcome, kind, tmp_path / "damaged", done)
    assert not faults, "\n".join(faults)


def test_there_are_enough_damages() -> None:
    assert sum(len(sample(name)) for name in KINDS) >= 300
    assert {d.name for name in KINDS for d in sample(name)} >= CAUGHT | REQUIRED
    assert {kind.survey for kind in KINDS.values()} >= SURVEYS.keys() - {"generic", "simulated"}  # a recipe holds no samples


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
    outcome = trials.run(kind, sound, source, open_folder / "out", nobody=True)
    faults = judge(outcome, kind, source, done)
    assert not faults, "\n".join(faults)
    assert any("ermission" in row["reason"] for row in outcome.quarantined), outcome.quarantined
