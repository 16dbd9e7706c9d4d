"""What is wrong with a folder of shards, and what to do about it."""

from __future__ import annotations

from pathlib import Path

from hpcspec.atomic import read_json
from hpcspec.errors import UserError
from hpcspec.shards.format import Shard, shard_paths


def examine(folder: Path) -> bool:
    """Print a line per shard below `folder` (objects, checksums, books) and per stale temporary file; True if all is well.

    Raises UserError if there is no shard.
    """
    found = sorted(p for place in [folder, *(d for d in folder.rglob("*") if d.is_dir())] for p in shard_paths(place))
    if not found:
        raise UserError(f"no shards in {folder}")
    well = True
    for path in found:
        faults = _faults(path)
        well &= not faults
        said = "; ".join(faults) + ": delete it and ingest again" if faults else _content(path)
        print(f"{'FAIL' if faults else 'ok  '} {path}: {said}")
    for stale in sorted(folder.rglob(".*.tmp")):
        print(f"note {stale}: left by a killed task; delete it when nothing is running")
    return well


def _content(path: Path) -> str:
    with Shard(path) as shard:
        index = shard.index()
        flux = shard.file["value/flux"]
        how = flux.id.get_create_plist()
        filters = " and ".join(how.get_filter(i)[3].decode() for i in range(how.get_nfilters())) or "none"
        return (f"{len(index)} objects, {int(index.pixels[-1])} pixels, {path.stat().st_size / 2**20:.1f} MiB, schema "
                f"{shard.file.attrs['schema_version']}, chunks {flux.chunks}, filters {filters}")  # fmt: skip


def _faults(path: Path) -> list[str]:
    try:
        with Shard(path) as shard:
            damaged = [f"checksum of {name}" for name in shard.damaged()]
            books = read_json(path.parent / "books" / f"{path.stem}.json")
            if books is None or books["inputs"] != shard.inputs:
                damaged.append("no books")
            return damaged
    except (UserError, OSError, KeyError, RuntimeError) as error:
        return [str(error)]
