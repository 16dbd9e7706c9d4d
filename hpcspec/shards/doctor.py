"""What is wrong with folders of shards, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import h5py

from hpcspec.atomic import read_json
from hpcspec.errors import UserError
from hpcspec.shards.format import INDEX, shard_paths
from hpcspec.shards.ingest import quarantined_rows
from hpcspec.shards.shard import Shard


def examine(folder: Path) -> bool:
    """Print a line per shard at or below `folder` (schema, counts, checksums, layout, compression, locks), per index of a
    folder of shards (its books), and per file that was left behind; True if all is well.

    Raises UserError if there is no shard.
    """
    places = [folder] if folder.is_file() else [p for p in (folder, *sorted(folder.rglob("*"))) if _holds_shards(p)]
    if not places:
        raise UserError(f"no shards in {folder}")
    well = True
    for place in places:
        paths = [place] if place.is_file() else shard_paths(place)
        for path in paths:
            faults = _faults(path)
            well &= not faults
            said = "; ".join(faults) + ": delete it and ingest again" if faults else _content(path)
            print(f"{'FAIL' if faults else 'ok  '} {path}: {said}")
        if place.is_dir():
            well &= _books(place, paths)
    for left in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if left.name.startswith(".") and left.suffix == ".tmp":
            print(f"note {left}: left by a killed task; delete it when nothing is running")
        elif left.name == "units" and left.is_dir():
            size = sum(p.stat().st_size for p in left.glob("*")) / 2**20
            print(f"note {left}: {size:.0f} MiB of files read already; an ingest that is not finished goes on from them, or "
                  "ingest.keep_units keeps them")  # fmt: skip
    return well


def _holds_shards(place: Path) -> bool:
    left = place / INDEX, place / "units"  # the latter of an ingest that is not finished
    return place.is_dir() and place.name != "units" and (any(p.exists() for p in left) or any(place.glob("*.h5")))


def _books(place: Path, paths: list[Path]) -> bool:
    index = read_json(place / INDEX)
    if not index:
        print(f"FAIL {place}: no {INDEX}: the ingest was not finished; run it again")
        return False
    counts, faults = index["counts"], []
    try:
        objects = 0
        for path in paths:
            with Shard.open(path) as shard:
                objects += len(shard.info)
        if objects != counts["objects"]:
            faults.append(f"{objects} objects in the shards, {counts['objects']} in the books")
    except UserError:
        pass  # said already, of the shard
    quarantined = len(quarantined_rows(place))
    if quarantined != counts["quarantined"] or counts["rows_in"] != counts["objects"] + counts["quarantined"]:
        faults.append(f"{counts['rows_in']} rows in, {counts['objects']} objects, {quarantined} quarantined")
    for stray in sorted(set(place.glob("*.h5")) - set(paths)):
        print(f"note {stray}: of an older or unfinished ingest; the next one removes it")
    if faults:
        print(f"FAIL {place}: the books don't balance: {'; '.join(faults)}: delete {INDEX} and ingest again")
    else:
        print(f"ok   {place}: {counts['rows_in']} rows in = {counts['objects']} objects + {counts['quarantined']} quarantined, "
              f"{len(paths)} shards")  # fmt: skip
    return not faults


def _content(path: Path) -> str:
    locked = _locked(path)
    with Shard.open(path) as shard:
        info, value = shard.info, shard.file["sample/value"]
        how = value.id.get_create_plist()
        filters = " and ".join(how.get_filter(i)[3].decode() for i in range(how.get_nfilters())) or "none"
        layout = f"chunks of {value.chunks[0] * 4 / 2**20:.2g} MiB" if value.chunks else "contiguous"
        return (f"{len(info)} objects, {info.samples} samples, {info.size / 2**20:.1f} MiB, schema "
                f"{shard.file.attrs['schema_version']}, {layout}, filters {filters}, {locked}")  # fmt: skip


def _locked(path: Path) -> str:
    """Whether HDF5's own locking would let this file be opened: on some file systems it can't, and is not needed."""
    try:
        with h5py.File(path, "r", locking=True):
            return "not locked"
    except OSError:
        return "locked or on a file system without locks: other programs need HDF5_USE_FILE_LOCKING=FALSE"


def _faults(path: Path) -> list[str]:
    try:
        with Shard.open(path) as shard:
            return [f"checksum of {name}" for name in shard.damaged()]
    except (UserError, OSError, KeyError, RuntimeError) as error:
        return [str(error)]
