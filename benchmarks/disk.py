"""Bytes on disk of the same objects: the survey's FITS files, the Multimodal Universe's HDF5 layout, and shards."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy import units
from astropy_healpix import HEALPix
from survey_mix import SHARES

from hpcspec.atomic import read_json, write_json
from hpcspec.shards.format import FILTERS, shard_paths, write_shard
from hpcspec.shards.ingest import ingest
from hpcspec.shards.objects import Objects
from hpcspec.shards.shard import Shard
from hpcspec.simulate import simulate
from hpcspec.surveys import discover

VERSION = 1
# What the surveys' own files hold and the simulated ones don't: the ratio to real files is lower.
LACKING = {
    "sdss": "wdisp, sky and model of each pixel, the line fits and, in full files, every exposure",
    "desi": "the resolution matrices (11 values a pixel), scores and the exposures' table",
    "apogee": "the visits' own rows, sky, telluric and their errors, the line-spread function",
}
# What the layout holds beside lambda, flux, ivar, lsf_sigma and mask: of each pixel, in single precision; GALAH has no mask.
EXTRA = {"sdss": (), "desi": (), "apogee": ("pseudo_continuum_flux", "pseudo_continuum_ivar"),
         "galah": ("lsf", "norm_lambda", "norm_flux", "norm_ivar")}  # fmt: skip
DESI_PIXELS = 7781


def disk_sizes(folder: Path, spectra: int) -> dict[str, dict[str, float]]:
    """By survey: objects, and bytes of `fits`, `mmu` (its five spectral data sets), `mmu_whole` (with the survey's others),
    and of shards with each compression, `shards_none` …; kept in `folder`.

    Raises RuntimeError if ingest does not keep every object.
    """
    facts, made = {"spectra": spectra, "version": VERSION}, read_json(folder / "disk.json")
    if made and made["facts"] == facts:
        return made["sizes"]
    shutil.rmtree(folder, ignore_errors=True)
    counts = {survey: max(2, round(share * spectra)) for survey, share in SHARES.items()}
    simulate(folder / "fits", counts, seed=1)
    sizes = {survey: _sizes(folder, survey, count) for survey, count in counts.items()}
    write_json(folder / "disk.json", {"facts": facts, "sizes": sizes})
    return sizes


def _sizes(folder: Path, survey: str, count: int) -> dict[str, float]:
    native, shards = folder / "fits" / survey, folder / "shards" / survey
    kept = ingest(survey, native, shards, 128)
    if kept.objects != count:
        raise RuntimeError(f"{survey}: {kept.objects} of {count} simulated objects were ingested")
    files = {path for source in discover(survey, native) for path in source.paths}
    sizes = {"objects": float(count), "fits": _bytes(files), **dict.fromkeys((f"shards_{name}" for name in FILTERS), 0.0)}
    blocks = []
    for path in shard_paths(shards):
        with Shard.open(path) as shard:
            blocks.append(shard.objects())
        for name in FILTERS:
            packed = path if name == "none" else folder / name / path.name
            if packed != path:
                write_shard(packed, blocks[-1], survey, "benchmark", name)
            sizes[f"shards_{name}"] += packed.stat().st_size
    for name, extra in (("mmu", ()), ("mmu_whole", EXTRA[survey])):
        sizes[name] = write_multimodal(folder / name / survey, survey, blocks, extra).stat().st_size
    return sizes


def _bytes(paths: Sequence[Path] | set[Path]) -> float:
    return float(sum(path.stat().st_size for path in paths))


def write_multimodal(folder: Path, survey: str, blocks: Sequence[Objects], extra: Sequence[str] = ()) -> Path:
    """Objects in the Multimodal Universe's layout, padded to the longest (wavelength -1, mask True, ivar 0), all in one file;
    DESI's arms are combined as there. What `extra` names is filled with ones, as is the width of the line-spread function."""
    ones = [_joined(block.arms(i), survey == "desi") for block in blocks for i in range(len(block))]
    shape = len(ones), max(len(one[0]) for one in ones)
    wavelength, flux, ivar = np.full(shape, -1, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for row, one in enumerate(ones):
        for array, values in zip((wavelength, flux, ivar), one, strict=True):
            array[row, : len(values)] = values
    columns = {n: np.concatenate([block.columns[n] for block in blocks]) for n in ("id", "ra", "dec")}
    sky = HEALPix(nside=16, order="nested").lonlat_to_healpix(columns["ra"] * units.deg, columns["dec"] * units.deg)
    table: dict[str, Any] = {"object_id": columns["id"], "ra": columns["ra"], "dec": columns["dec"], "healpix": np.asarray(sky)}
    for name in {name for block in blocks for name in block.meta or {}}:
        table.setdefault(name, np.concatenate([(block.meta or {})[name] for block in blocks]))
    table |= {"spectrum_lambda": wavelength, "spectrum_flux": flux, "spectrum_ivar": ivar}
    table |= {f"spectrum_{name}": np.ones(shape, np.float32) for name in ("lsf_sigma", *extra)}
    if not (survey == "galah" and extra):
        table["spectrum_mask"] = ivar == 0
    path = folder / "main" / "healpix=0" / "001-of-001.hdf5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in table.items():
            file.create_dataset(name, data=values)
    return path


def _joined(arms: list[tuple[np.ndarray, np.ndarray, np.ndarray]], combine: bool) -> tuple[np.ndarray, ...]:
    """wavelength, flux and ivar of all arms, one after another or combined on DESI's one grid."""
    wavelength, flux, ivar = (np.concatenate(values) for values in zip(*arms, strict=True))
    if not combine:
        return wavelength, flux, ivar
    at = np.rint((wavelength - 3600) / 0.8).astype(int)
    weight, total = (np.bincount(at, v, DESI_PIXELS) for v in (ivar, ivar * flux))
    mean = np.divide(total, weight, out=np.zeros(DESI_PIXELS), where=weight > 0)
    return 3600 + 0.8 * np.arange(DESI_PIXELS), mean, weight
