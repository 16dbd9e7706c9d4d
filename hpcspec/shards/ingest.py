"""Survey files to shards: the work is cut into units that don't depend on who does them, each becomes one shard.

A unit that is already there with the same inputs is left alone, so ingesting again, or after a kill, does only what is
missing. Objects that can't be used go to `quarantine/<unit>.jsonl` beside the shards, and the books must balance.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcspec.atomic import read_json, write_json, write_text
from hpcspec.comm import agreed, on_root, rank_and_size
from hpcspec.errors import UserError
from hpcspec.shards.format import SCHEMA_VERSION, Shard, write_shard
from hpcspec.surveys import reader
from hpcspec.surveys.base import Quarantined, Source
from hpcspec.surveys.observation import Observation

log = logging.getLogger(__name__)
REPEATED = "duplicate identifier"


@dataclass(frozen=True)
class Unit:
    """One piece of ingest work: these sources become this shard."""

    name: str
    sources: tuple[Source, ...]
    inputs: str


@dataclass(frozen=True)
class Counts:
    """The books of an ingest: rows_in = objects + quarantined."""

    sources: int
    rows_in: int
    objects: int
    quarantined: int


def plan(sources: Sequence[Source], survey: str, mib: float) -> list[Unit]:
    """Cut sorted sources into units of about `mib` MiB of input each; a pure function of the files' names, sizes and times."""
    units: list[Unit] = []
    group: list[Source] = []
    size = 0
    for source in sorted(sources):
        group.append(source)
        size += sum(p.stat().st_size for p in source.paths)
        if size >= mib * 2**20:
            units.append(_unit(len(units), survey, group))
            group, size = [], 0
    if group:
        units.append(_unit(len(units), survey, group))
    return units


def _unit(number: int, survey: str, sources: list[Source]) -> Unit:
    files = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for s in sources for p in s.paths]
    return Unit(f"{survey}-{number:05d}", tuple(sources), hashlib.sha256(repr((SCHEMA_VERSION, files)).encode()).hexdigest()[:16])


def ingest_unit(unit: Unit, survey: str, folder: Path, compression: str = "none") -> None:
    """Read one unit and write its shard, quarantine lines and books, unless they are there already."""
    shard, books, quarantine = _paths(folder, unit)
    if shard.is_file() and quarantine.is_file() and (read_json(books) or {}).get("inputs") == unit.inputs:
        return
    books.unlink(missing_ok=True)
    good: list[tuple[Observation, int, int]] = []
    bad: list[Quarantined] = []
    seen: set[str] = set()
    rows_in = 0
    for number, source in enumerate(unit.sources):
        rows = 0
        for item in reader(survey).read(source):
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
    write_shard(shard, good, [str(s.paths[0]) for s in unit.sources], survey, unit.inputs, compression)
    write_text(quarantine, "".join(json.dumps(asdict(q)) + "\n" for q in bad))
    write_json(books, {"inputs": unit.inputs, "sources": len(unit.sources), "rows_in": rows_in,
                       "objects": len(good), "quarantined": len(bad)})  # fmt: skip


def _paths(folder: Path, unit: Unit) -> tuple[Path, Path, Path]:
    return folder / f"{unit.name}.h5", folder / "books" / f"{unit.name}.json", folder / "quarantine" / f"{unit.name}.jsonl"


def ingest(survey: str, source: Path, folder: Path, mib: float, compression: str = "none", comm: Any = None,
           workers: int = 1, leave_out: Callable[[Path], bool] = lambda _: False) -> Counts:  # fmt: skip
    """Ingest `source` into shards in `folder` and settle the books; shared by the ranks of `comm`, else by worker processes.

    leave_out says which files below `source` are not the survey's.

    Raises UserError for a missing or unwritable folder, or if there is no usable object.
    """

    def find() -> list[Unit]:
        return plan([s for s in reader(survey).discover(source) if not leave_out(s.paths[0])], survey, mib)

    units = on_root(comm, find)
    rank, size = rank_and_size(comm)
    mine = units[rank::size]

    def work() -> None:
        done = 0
        for done, _ in enumerate(_each(mine, survey, folder, compression, 1 if comm is not None else workers), 1):
            if rank == 0:
                log.info("ingest %s: %d of %d shards%s", survey, done, len(mine), f" (rank 0 of {size})" if size > 1 else "")

    agreed(comm, work)
    return on_root(comm, lambda: settle(survey, units, folder, compression))


def _each(units: list[Unit], survey: str, folder: Path, compression: str, workers: int) -> Iterator[None]:
    one = functools.partial(ingest_unit, survey=survey, folder=folder, compression=compression)
    if workers == 1 or len(units) == 1:
        yield from map(one, units)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        yield from pool.map(one, units)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def settle(survey: str, units: Sequence[Unit], folder: Path, compression: str = "none") -> Counts:
    """Settle an ingest: an identifier that came twice is kept where it came first, shards of an older plan are removed,
    and the books are checked.

    Raises UserError if a shard is missing, if rows in ≠ objects + quarantined, or if there is no usable object.
    """
    missing = [u.name for u in units if (read_json(_paths(folder, u)[1]) or {}).get("inputs") != u.inputs]
    if missing:
        raise UserError(f"ingest of {survey} is not complete, {len(missing)} of {len(units)} shards are missing: run it again")
    known = {path for unit in units for path in _paths(folder, unit)}
    for stale in [*folder.glob(f"{survey}-*.h5"), *folder.glob(f"*/{survey}-*.json*")]:
        if stale not in known:
            stale.unlink()
    seen: set[str] = set()
    totals: Counter[str] = Counter()
    for unit in units:
        shard, books, quarantine = _paths(folder, unit)
        _bring_back(unit, survey, folder, compression, seen)
        _drop_repeated(unit, survey, folder, compression, seen)
        with Shard(shard) as opened:
            objects = len(opened.index())
        quarantined = len(quarantine.read_text().splitlines())
        account = read_json(books)
        if account["rows_in"] != objects + quarantined:
            raise UserError(f"the books of {shard} don't balance: {account['rows_in']} rows in, {objects} objects, "
                            f"{quarantined} quarantined: delete it and ingest again")  # fmt: skip
        totals.update(sources=len(unit.sources), rows_in=account["rows_in"], objects=objects, quarantined=quarantined)
    counts = Counts(**{k: totals[k] for k in ("sources", "rows_in", "objects", "quarantined")})
    log.info("ingest %s: %d rows in = %d objects + %d quarantined", survey, counts.rows_in, counts.objects, counts.quarantined)
    if counts.objects == 0:
        first = next(iter(quarantined_rows(folder)), {})
        raise UserError(f"no usable {survey} spectrum among {counts.sources} files: {counts.quarantined} objects quarantined, "
                        f"the first because: {first.get('reason', '')}. Is --survey right?")  # fmt: skip
    return counts


def _bring_back(unit: Unit, survey: str, folder: Path, compression: str, seen: set[str]) -> None:
    """Ingest the unit again if an object that it gave up, for it came earlier too, no longer comes earlier."""
    _, books, quarantine = _paths(folder, unit)
    given_up = quarantine.read_text().splitlines()[read_json(books)["quarantined"] :]
    if any(json.loads(line)["object_id"] not in seen for line in given_up):
        books.unlink()
        ingest_unit(unit, survey, folder, compression)


def _drop_repeated(unit: Unit, survey: str, folder: Path, compression: str, seen: set[str]) -> None:
    """Move objects already in `seen` from the shard to quarantine; afterwards `seen` holds this shard's too."""
    shard, books, quarantine = _paths(folder, unit)
    with Shard(shard) as opened:
        ids = opened.index().ids.tolist()
        repeated = [i for i in ids if i in seen]
        seen.update(ids)
        if not repeated:
            return
        paths = opened.sources()[0]
        spectra = list(opened.spectra())
        kept = [s for s in spectra if s[0].object_id not in set(repeated)]
        gone = [Quarantined(paths[source], s.object_id, REPEATED) for s, source, _ in spectra if s.object_id in set(repeated)]
    # The quarantine file first. After a kill in between, the books tell that it has the new lines already.
    lines = quarantine.read_text().splitlines()
    if len(lines) + len(kept) < read_json(books)["rows_in"]:
        write_text(quarantine, "".join(line + "\n" for line in [*lines, *(json.dumps(asdict(q)) for q in gone)]))
    write_shard(shard, kept, paths, survey, unit.inputs, compression)


def quarantined_rows(folder: Path) -> list[dict[str, str]]:
    """All quarantined objects of a shard folder: path, object_id and reason each, in the order of the shards."""
    return [json.loads(line) for p in sorted((folder / "quarantine").glob("*.jsonl")) for line in p.read_text().splitlines()]
