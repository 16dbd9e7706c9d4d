"""Shards of four surveys in realistic proportions: lengths, grids and order on the sky as ingest makes them; the values are
slices of one pool of noise, so that gigabytes are written in minutes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpcspec.atomic import read_json, write_json
from hpcspec.errors import UserError
from hpcspec.shards.format import INDEX, SCHEMA_VERSION, write_shard
from hpcspec.shards.objects import canonical, collect, healpix29
from hpcspec.shards.shard import Shard, describe, index_of
from hpcspec.simulate.instruments import APOGEE_START, APOGEE_STEP, CHIPS, HERMES, HERMES_PIXELS
from hpcspec.surveys.grids import Grid
from hpcspec.surveys.observation import Arm, Observation

SHARES = {"sdss": 0.40, "desi": 0.25, "apogee": 0.25, "galah": 0.10}
VERSION = 2  # of what is written, beside that of the shards
MADE = "made.json"  # what was asked for
MIB = 1 << 20


class ArmOf(NamedTuple):
    """An arm as a survey delivers it: from pixel `first` on `pixels` of them, both by up to `spread` more or fewer; `own`:
    every object has a linear grid of its own, with about this start and step."""

    name: str
    grid: Grid
    first: int
    pixels: int
    spread: int = 0
    own: bool = False


_DESI, _APOGEE = Grid("linear", 3600.0, 0.8), Grid("log10", APOGEE_START, APOGEE_STEP)
ARMS = {
    "sdss": [ArmOf("coadd", Grid("log10", 0.0, 1e-4), 35800, 3850, 40)],
    "desi": [ArmOf("b", _DESI, 0, 2751), ArmOf("r", _DESI, 2700, 2326), ArmOf("z", _DESI, 4900, 2881)],
    "apogee": [ArmOf(name, _APOGEE, first, last - first, 10) for name, (first, last) in CHIPS.items()],
    "galah": [ArmOf("BGRI"[int(n) - 1], Grid("linear_air", *of), 0, HERMES_PIXELS, own=True) for n, of in HERMES.items()],
}


def write_mix(folder: Path, spectra: int, mib: float, seed: int = 0) -> list[Path]:
    """Shards of about `mib` MiB with this many spectra in all, unless the folder has them; their paths."""
    facts = {"spectra": spectra, "mib": mib, "seed": seed, "version": VERSION, "schema": SCHEMA_VERSION}
    if not _there(folder, facts):
        rng = np.random.default_rng(seed)
        pool = rng.normal(10, 1, (2, 1 << 22)).astype(np.float32)
        pool[1] = np.where(rng.random(1 << 22) < 0.03, 0, rng.uniform(0.5, 2, 1 << 22))
        for survey, share in SHARES.items():
            _write_survey(folder, survey, round(share * spectra), mib, pool, rng)
        _finish(folder, facts)
    return sorted(folder.glob("*.h5"))


def _finish(folder: Path, facts: dict[str, Any]) -> None:
    """Write the index that ingest leaves, and what was made."""
    write_json(folder / INDEX, index_of({path.name: describe(path) for path in sorted(folder.glob("*.h5"))}))
    write_json(folder / MADE, facts)


def _there(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether a folder's data are these, and can be read; if not, it is emptied."""
    try:
        if read_json(folder / MADE) == facts and [describe(path) for path in folder.glob("*.h5")]:
            return True
    except UserError:
        pass  # of another version
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _write_survey(folder: Path, survey: str, count: int, mib: float, pool: np.ndarray, rng: np.random.Generator) -> None:
    ra, dec = rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-0.3, 0.95, count)))
    sky = np.argsort(healpix29(ra, dec), kind="stable")
    per_shard = max(1, round(mib * MIB / (8 * sum(arm.pixels for arm in ARMS[survey]))))
    for number, start in enumerate(range(0, count, per_shard)):
        ones = [
            (Observation(f"{survey}-{i:012d}", survey, float(ra[i]), float(dec[i]), tuple(_arms(survey, pool, rng))), 0, i)
            for i in sky[start : start + per_shard].tolist()
        ]
        write_shard(folder / f"{survey}-{number:05d}.h5", collect(ones, [f"{survey}.fits"]), survey, "benchmark")


def _arms(survey: str, pool: np.ndarray, rng: np.random.Generator) -> Iterator[Arm]:
    for arm in ARMS[survey]:
        grid, first, pixels = arm.grid, arm.first, arm.pixels
        if arm.own:
            grid = Grid(grid.kind, grid.start + float(rng.uniform(-1, 1)), grid.step * float(rng.uniform(0.9999, 1.0001)))
        if arm.spread:
            first, pixels = first + int(rng.integers(arm.spread)), pixels + int(rng.integers(-arm.spread, arm.spread))
        at = int(rng.integers(pool.shape[1] - pixels))
        yield Arm(arm.name, grid, first, *pool[:, at : at + pixels])


def cut_up(paths: list[Path], folder: Path, pieces: int) -> list[Path]:
    """The same objects in shards of a `pieces`-th of the size, unless the folder has them; their paths."""
    facts = {"version": VERSION, "pieces": pieces, "of": [[p.name, p.stat().st_size] for p in paths]}
    if not _there(folder, facts):
        for path in paths:
            with Shard.open(path) as shard:
                edges = np.linspace(0, len(shard.info), min(pieces, len(shard.info)) + 1).astype(int).tolist()
                for k, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
                    piece = canonical(shard.objects(a, b))
                    write_shard(folder / f"{path.stem}-{k:03d}.h5", piece, shard.info.survey, "benchmark")
        _finish(folder, facts)
    return sorted(folder.glob("*.h5"))


def write_flat(paths: list[Path], folder: Path) -> None:
    """The spectra of shards as four arrays for the peers, unless they are there: flux, ivar, wavelength (v,) f4, all arms of
    an object one after another, and offsets (n+1,) i8 of the objects in them."""
    if (folder / "offsets.npy").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    samples = sum(describe(path).samples for path in paths)
    arrays = {name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (samples,))
              for name in ("flux", "ivar", "wavelength")}  # fmt: skip
    ends, at = [0], 0
    for path in paths:
        with Shard.open(path) as shard:
            objects = shard.objects()
        v = objects.samples.shape[1]
        arrays["flux"][at : at + v], arrays["ivar"][at : at + v] = objects.samples
        arrays["wavelength"][at : at + v] = np.concatenate([objects.wavelength(s) for s in range(len(objects.grid))])
        ends += (at + objects.pixels[objects.segments[1:]]).tolist()
        at += v
    for array in arrays.values():
        array.flush()
    np.save(folder / "offsets.npy", np.array(ends, np.int64))
