"""Synthetic surveys with known truth, in the surveys' own file layouts: for demonstrations, tests and benchmarks."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from hpcspec.errors import UserError
from hpcspec.simulate import files
from hpcspec.simulate.draw import CODES, truth
from hpcspec.simulate.instruments import INSTRUMENTS

__all__ = ["COLUMNS", "observations", "simulate", "truth"]

COLUMNS = ("object_id", "class", "teff", "logg", "fe_h", "z", "ra", "dec", "sn")


def observations(survey: str, count: int, seed: int) -> Iterator[files.Observed]:
    """The first `count` objects of a survey as its instrument sees them."""
    instrument = INSTRUMENTS[survey]()
    for index in range(count):
        target = truth(survey, seed, index)
        sn, exposures = instrument.observe(target, np.random.default_rng([seed, CODES[survey], index, 1]))
        yield files.Observed(files.object_id(survey, seed, index, target), index, target, sn, exposures)


def simulate(
    folder: Path, counts: Mapping[str, int], seed: int, progress: Callable[[str, int, int], None] | None = None
) -> None:
    """Write `folder/<survey>/…` in the survey's own layout and, last, `folder/<survey>/labels.csv` with the truth.

    counts: objects by survey; progress(survey, done, total) is called after every object or file. The same seed gives the
    same bytes; an object depends on seed, survey and its number alone. Each fifth object is the same star in all surveys.

    Raises UserError for a survey that can't be simulated, a negative count, or a survey folder that is not empty.
    """
    for survey, count in counts.items():
        if survey not in INSTRUMENTS:
            raise UserError(f"survey {survey!r} can't be simulated: known are {', '.join(INSTRUMENTS)}")
        if count < 0 or seed < 0:
            raise UserError(f"{survey}: count {count} and seed {seed} must not be negative")
        if (folder / survey).exists() and any((folder / survey).iterdir()):
            raise UserError(f"{folder / survey} is not empty: name a new folder, or delete what an earlier simulation left there")
    for survey, count in counts.items():
        if count:
            _simulate(folder / survey, survey, count, seed, progress or (lambda *_: None))


def _simulate(folder: Path, survey: str, count: int, seed: int, progress: Callable[[str, int, int], None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, seen in enumerate(_batches(observations(survey, count, seed), files.DESI_PER_FILE if survey == "desi" else 1)):
        if survey == "desi":
            files.write_desi(folder, number, seen)
        elif survey == "sdss":
            files.write_sdss(folder, seed, seen[0])
        else:
            {"apogee": files.write_apogee, "galah": files.write_galah}[survey](folder, seen[0])
        rows += [files.label_row(s) for s in seen]
        progress(survey, len(rows), count)
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _batches(items: Iterator[files.Observed], size: int) -> Iterator[list[files.Observed]]:
    batch: list[files.Observed] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
