"""Survey files to shards: files are read in units, which don't depend on who reads them, and their objects are then dealt
to shards by their place on the sky.

    discover ──> units (some files each) ──> units/<unit>.h5 ──> shards by HEALPix, quarantine, index.json

A unit that is there is not read again, and neither shards nor what is in `index.json` change before everything is there, so
ingesting again, or after a kill, does only what is missing. The bytes of the shards depend on the files alone, not on units,
ranks or kills. Objects that can't be used go to `quarantine/<survey>.jsonl`, and the books must balance.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import multiprocessing
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcspec.atomic import read_json, write_json, write_text
from hpcspec.comm import agreed, on_root, rank_and_size
from hpcspec.errors import UserError
from hpcspec.shards.format import INDEX, SCHEMA_VERSION, write_shard
from hpcspec.shards.objects import Objects, canonical, collect, columns_of, encoded, joined, text
from hpcspec.shards.shard import Shard, describe, index_of
from hpcspec.shards.variability import VERSION, with_variability
from hpcspec.surveys import discover, read, read_rows
from hpcspec.surveys.base import Quarantined, Source, passed_over, reason_of
from hpcspec.surveys.observation import Observation

log = logging.getLogger(__name__)
REPEATED = "duplicate identifier"
MIB = 2**20
COLUMN_BYTES = 128  # about what an object takes beside its measurements


@dataclass(frozen=True)
class Unit:
    """One piece of reading: these sources, read together."""

    name: str
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Counts:
    """The books of an ingest: rows_in = objects + quarantined."""

    sources: int
    rows_in: int
    objects: int
    quarantined: int


@dataclass(frozen=True)
class ShardPlan:
    """One shard: from each of these units the objects start … stop-1, without those that came before in another file."""

    name: str
    pieces: tuple[tuple[str, int, int, tuple[int, ...]], ...]


def plan(sources: Iterable[Source], survey: str, in_place: bool = False) -> list[Unit]:
    """Cut sources into units, the same ones around whatever is added or removed elsewhere.

    A unit ends where a hash of the source's key says so, more often the larger the files; a function of the files' names,
    sizes and times alone.
    """
    ordered = sorted(sources)
    sizes = [sum(p.stat().st_size for p in s.paths) for s in ordered]
    # About 500 units, of 8 MiB to 2 GiB: a power of two, so that a survey that grows seldom changes all of them.
    mib = 2 ** min(max(round(math.log2(max(sum(sizes), 1) / MIB / 500)), 3), 11)
    units: list[Unit] = []
    group: list[Source] = []
    held = 0
    for source, size in zip(ordered, sizes, strict=True):
        group.append(source)
        held += size
        if zlib.crc32(os.fsencode(source.key)) / 2**32 < size / (mib * MIB) or held > 4 * mib * MIB:
            units.append(_unit(survey, group, in_place))
            group, held = [], 0
    return [*units, _unit(survey, group, in_place)] if group else units


def _unit(survey: str, sources: list[Source], in_place: bool) -> Unit:
    files = [(str(p), p.stat().st_size, p.stat().st_mtime_ns, s.epochs) for s in sources for p in s.paths]
    content = (SCHEMA_VERSION, VERSION, in_place, files)
    return Unit(f"{survey}-{hashlib.sha256(repr(content).encode()).hexdigest()[:16]}", tuple(sources))


def read_unit(unit: Unit, survey: str, folder: Path, in_place: bool = False) -> None:
    """Read one unit into `units/`: its objects in the order of the sky, and its books with what is quarantined.

    in_place: everything but the samples, which stay where they are.
    """
    books = folder / "units" / f"{unit.name}.json"
    if read_json(books) is not None and books.with_suffix(".h5").is_file():
        return
    good: list[tuple[Observation, int, int]] = []
    bad: list[Quarantined] = []
    seen: set[str] = set()
    rows_in = 0
    for number, source in enumerate(unit.sources):
        rows = 0
        for item in _items(survey, source):
            if isinstance(item, Quarantined):
                bad.append(item)
            elif item.object_id in seen:
                bad.append(Quarantined(str(source.paths[0]), item.object_id, REPEATED))
            else:
                seen.add(item.object_id)
                good.append((item, number, rows))
            rows += 1
        if rows == 0:
            bad.append(Quarantined(str(source.paths[0]), "", "the file holds no object"))
            rows = 1
        rows_in += rows
    objects = collect(good, [str(s.paths[0].resolve()) for s in unit.sources])
    if in_place:
        objects = replace(objects, samples=np.empty((2, 0), np.float32))
    meta = {"json": encoded([json.dumps(dict(o.meta)) for o, _, _ in good])}  # columns have their types when all is known
    write_shard(books.with_suffix(".h5"), replace(objects, meta=meta).take(_sky_order(objects)), survey, unit.name)
    write_json(books, {"sources": len(unit.sources), "rows_in": rows_in, "quarantined": [asdict(q) for q in bad]})


def _items(survey: str, source: Source) -> Iterator[Observation | Quarantined]:
    """What the reader gives of a source, with what light curves tell; a fault that the reader didn't expect ends this source,
    not the ingest."""
    try:
        for item in read(survey, source):
            yield with_variability(item) if isinstance(item, Observation) else item
    except UserError:
        raise
    except Exception as error:
        log.debug("reading %s", source.paths[0], exc_info=True)
        yield Quarantined(str(source.paths[0]), "", f"can't be read any further: {reason_of(error)}")


def _sky_order(objects: Objects) -> np.ndarray:
    return np.lexsort((objects.columns["id"], objects.columns["healpix"]))


def arrange(units: Sequence[Unit], folder: Path, key: str, survey: str, mib: float) -> tuple[list[ShardPlan], list[Quarantined]]:
    """Deal the objects of all units to shards of about `mib` MiB in the order of the sky; an identifier that came
    twice is kept where it came first in the order of the sources."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("healpix", "id", "source", "row", "size")}
    paths = [str(s.paths[0]) for u in units for s in u.sources]
    first_source = np.cumsum([0] + [len(u.sources) for u in units])
    scalars: set[str] = set()
    for number, unit in enumerate(units):
        with Shard.open(folder / "units" / f"{unit.name}.h5") as shard:
            for name in ("healpix", "id", "row"):
                columns[name].append(shard.column(name))
            columns["source"].append(shard.column("source") + first_source[number])
            segments, pixels = shard.lengths()
            columns["size"].append(8 * np.diff(pixels[segments]))
            scalars.update(shard.info.scalar_names)
    healpix, ids, source, row, size = (np.concatenate(columns[name]) for name in columns)
    size += 8 * len(scalars) + COLUMN_BYTES
    unit_of = np.repeat(np.arange(len(units)), [len(c) for c in columns["id"]])
    came = np.lexsort((row, source))
    kept = np.zeros(len(ids), bool)
    kept[came[np.unique(ids[came], return_index=True)[1]]] = True
    repeated = came[~kept[came]]
    order = np.flatnonzero(kept)[np.lexsort((ids[kept], healpix[kept]))]
    ends = np.cumsum(size[order])
    count = max(1, round(int(ends[-1]) / (mib * MIB))) if len(order) else 0
    cuts = np.linspace(0, ends[-1], count + 1)[1:-1] if count else np.zeros(0)
    edges = np.unique([0, *np.searchsorted(ends, cuts), len(order)]).tolist()
    place = np.full(len(ids), -1)
    place[order] = np.arange(len(order))
    start_of = np.concatenate([[0], np.cumsum([len(c) for c in columns["id"]])])
    shards = []
    for k, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        pieces = []
        of_shard = np.sort(order[a:b])
        for u, group in zip(*_groups(unit_of[of_shard], of_shard), strict=True):
            low, high = int(group[0]), int(group[-1]) + 1
            dropped = np.flatnonzero(place[low:high] < 0)
            pieces.append((units[u].name, low - int(start_of[u]), high - int(start_of[u]), tuple(dropped.tolist())))
        shards.append(ShardPlan(f"{survey}-{key[:8]}-{k:05d}", tuple(pieces)))
    return shards, [Quarantined(paths[source[i]], text(ids[i]), REPEATED) for i in repeated]


def _groups(keys: np.ndarray, values: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """The distinct keys of a sorted array, and the values of each."""
    distinct, starts = np.unique(keys, return_index=True)
    return distinct.tolist(), np.split(values, starts[1:])


def write_planned(shard: ShardPlan, folder: Path, survey: str, key: str, compression: str) -> None:
    """Write one shard from its units, unless it is there."""
    path = folder / f"{shard.name}.h5"
    if path.is_file():
        return
    parts = []
    for name, start, stop, dropped in shard.pieces:
        with Shard.open(folder / "units" / f"{name}.h5") as unit:
            part = unit.objects(start, stop, samples=not unit.info.in_place)
        parts.append(part.take(np.delete(np.arange(len(part)), dropped)))
    rows = np.concatenate([(part.meta or {})["json"] for part in parts])
    objects = joined(parts)
    order = _sky_order(objects)
    meta = columns_of([json.loads(rows[i]) for i in order.tolist()])
    write_shard(path, replace(canonical(objects.take(order)), meta=meta), survey, key, compression)


def ingest_units(survey: str, source: Path, folder: Path, task: int, tasks: int, epochs: bool = False,
                 in_place: bool = False, leave_out: Callable[[Path], bool] = lambda _: False) -> None:  # fmt: skip
    """Array task `task` of `tasks`: read its share of the units; `ingest` afterwards makes shards of them."""
    units = _units(survey, source, epochs, in_place, leave_out)[0][task::tasks]
    for done, unit in enumerate(units, 1):
        read_unit(unit, survey, folder, in_place)
        log.info("ingest %s: %d of %d units read (task %d of %d)", survey, done, len(units), task, tasks)


def _units(survey: str, source: Path, epochs: bool, in_place: bool, leave_out: Callable[[Path], bool],
           ) -> tuple[list[Unit], list[Quarantined]]:  # fmt: skip
    """All units, and what has the name of a file to read and is none."""
    with passed_over() as told:
        found = [s for s in discover(survey, source, epochs) if not leave_out(s.paths[0])]
    lost = [Quarantined(str(path), "", reason) for path, reason in sorted(told.items()) if not leave_out(path)]
    if not found:
        raise UserError(f"input folder {source} holds no {survey} files but those that the run made: give another with --input")
    if in_place:
        read_rows(survey, found[0].paths[0], [])
    try:
        return plan(found, survey, in_place), lost
    except OSError as error:
        raise UserError(f"can't look at {error.filename}: {error.strerror}: run it again when nothing changes there") from error


def ingest(survey: str, source: Path, folder: Path, mib: float, compression: str = "none", comm: Any = None,
           workers: int = 1, epochs: bool = False, in_place: bool = False, keep_units: bool = False,
           leave_out: Callable[[Path], bool] = lambda _: False) -> Counts:  # fmt: skip
    """Ingest `source` into shards of about `mib` MiB in `folder`; shared by the ranks of `comm`, else by worker processes.

    epochs: every epoch is an observation of its own; in_place: the samples stay in the files (of the Multimodal Universe)
    and are read there; keep_units: keep what was read, so that files added later are read alone; leave_out says which files
    below `source` are not the survey's.

    Raises UserError for a missing or unwritable folder, or if there is no usable object.
    """
    units, lost = on_root(comm, lambda: _units(survey, source, epochs, in_place, leave_out))
    key = hashlib.sha256(repr(([u.name for u in units] + list(map(repr, lost)), mib, compression)).encode()).hexdigest()[:16]
    done = on_root(comm, lambda: _finished(folder, key, units if keep_units else ()))
    if done is not None:
        return done
    rank, size = rank_and_size(comm)
    share = functools.partial(_shared, rank=rank, size=size, workers=1 if comm is not None else workers)
    label = f"ingest {survey}: %d of %d %s" + (f" (rank 0 of {size})" if size > 1 else "")
    read_one = functools.partial(read_unit, survey=survey, folder=folder, in_place=in_place)
    agreed(comm, lambda: share(units, read_one, label, "units read"))
    shards, repeated = on_root(comm, lambda: arrange(units, folder, key, survey, mib))
    write = functools.partial(write_planned, folder=folder, survey=survey, key=key, compression=compression)
    agreed(comm, lambda: share(shards, write, label, "shards written"))
    return on_root(comm, lambda: _settle(survey, units, shards, repeated, lost, folder, key, keep_units))


def _shared(items: list[Any], work: Callable[[Any], None], label: str, what: str, rank: int, size: int, workers: int) -> None:
    mine = items[rank::size]
    for done, _ in enumerate(_each(mine, work, workers), 1):
        if rank == 0:
            log.info(label, done, len(mine), what)


def _each(items: list[Any], work: Callable[[Any], None], workers: int) -> Iterator[None]:
    if workers == 1 or len(items) == 1:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        yield from pool.map(work, items)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finished(folder: Path, key: str, units: Sequence[Unit]) -> Counts | None:
    """The books of a finished ingest of the same files, tidied up if it was killed while it did."""
    index = read_json(folder / INDEX)
    if not index or index["key"] != key or not all((folder / name).is_file() for name in index["shards"]):
        return None
    _tidy(folder, index["shards"], units)
    return Counts(**index["counts"])


def _settle(survey: str, units: Sequence[Unit], shards: Sequence[ShardPlan], repeated: list[Quarantined],
            lost: list[Quarantined], folder: Path, key: str, keep_units: bool) -> Counts:  # fmt: skip
    """Check the books, make the new shards the ones that count, and remove what is left of older ones.

    Raises UserError if rows in ≠ objects + quarantined, or if there is no usable object.
    """
    books: list[Any] = [read_json(folder / "units" / f"{unit.name}.json") for unit in units]
    bad = [*(row for b in books for row in b["quarantined"]), *map(asdict, [*repeated, *lost])]
    names = [f"{planned.name}.h5" for planned in shards]
    infos = {name: describe(folder / name, trust=False) for name in names}
    objects = sum(map(len, infos.values()))
    rows_in = sum(b["rows_in"] for b in books) + len(lost)
    counts = Counts(sum(b["sources"] for b in books), rows_in, objects, len(bad))
    if counts.rows_in != counts.objects + counts.quarantined:
        raise UserError(f"the books of {folder} don't balance: {counts}: delete the folder and ingest again")
    log.info("ingest %s: %d rows in = %d objects + %d quarantined", survey, *list(asdict(counts).values())[1:])
    write_text(folder / "quarantine" / f"{survey}.jsonl", "".join(json.dumps(row) + "\n" for row in bad))
    if counts.objects == 0:
        shutil.rmtree(folder / "units")
        raise UserError(f"no usable {survey} object among {counts.sources} files: {counts.quarantined} objects quarantined, "
                        f"the first because: {bad[0]['reason']}. Is --survey right?")  # fmt: skip
    write_json(folder / INDEX, {"survey": survey, "key": key, "counts": asdict(counts), **index_of(infos)})
    _tidy(folder, names, units if keep_units else ())
    return counts


def _tidy(folder: Path, shards: Sequence[str], units: Sequence[Unit]) -> None:
    """Remove the shards that don't count and what was read, but for these."""
    known = {unit.name for unit in units}
    stale = [p for p in folder.glob("*.h5") if p.name not in shards]
    stale += [p for p in (folder / "units").glob("*") if p.stem not in known]
    for path in stale:
        path.unlink(missing_ok=True)
    if not units:
        shutil.rmtree(folder / "units", ignore_errors=True)


def quarantined_rows(folder: Path) -> list[dict[str, str]]:
    """All quarantined objects of a shard folder: path, object_id and reason each."""
    return [json.loads(line) for p in sorted((folder / "quarantine").glob("*.jsonl")) for line in p.read_text().splitlines()]
