"""Objects of survey folders with their labels, and the matrices that baselines take."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from hpcspec.adapt.labels import NO_CLASS, read_table
from hpcspec.adapt.report import on_grid
from hpcspec.atomic import replacing
from hpcspec.errors import UserError
from hpcspec.evaluate.spec import Data
from hpcspec.surveys.observation import Observation
from hpcspec.trained import observations

LEVEL = 60  # pixels, σ of the local level


class NotMeasured(Exception):
    """Something can't be measured here; the message says why, and what to provide."""


@dataclass(frozen=True)
class Sample:
    """n objects and their labels: values {name: (n,) float64, NaN where unknown}, classes (n,) text, "" where unknown."""

    objects: tuple[Observation, ...]
    values: dict[str, np.ndarray]
    classes: np.ndarray
    rows: tuple[Mapping[str, Any], ...] = ()
    """All that the tables (or the files) say of each object."""

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def ids(self) -> list[str]:
        """Identifiers, in order."""
        return [one.object_id for one in self.objects]

    def __getitem__(self, which: np.ndarray) -> Sample:
        """Some of them: numbers, or a mask (n,)."""
        numbers = np.arange(len(self))[which]
        values = {name: x[numbers] for name, x in self.values.items()}
        return replace(self, objects=tuple(self.objects[i] for i in numbers), values=values, classes=self.classes[numbers],
                       rows=tuple(self.rows[i] for i in numbers))  # fmt: skip

    def column(self, name: str) -> np.ndarray:
        """(n,) text: what the tables say under this name, "" where nothing; `object_id` is the identifier."""
        if name == "object_id":
            return np.array(self.ids)
        return np.array([str(row.get(name, "") or "") for row in self.rows])

    def known(self, targets: Sequence[str]) -> np.ndarray:
        """(n,) bool: whether an object has all of these targets; "class" is one."""
        masks = [self.classes != "" if t == "class" else np.isfinite(self.values[t]) for t in targets]
        return np.all([np.ones(len(self), bool), *masks], axis=0)

    def write_labels(self, path: Path) -> None:
        """A table with object_id, class and every value."""
        with replacing(path) as temporary, open(temporary, "w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["object_id", "class", *self.values])
            for i, name in enumerate(self.ids):
                numbers = [v[i] for v in self.values.values()]
                table.writerow([name, self.classes[i], *("" if np.isnan(v) else repr(float(v)) for v in numbers)])


def load_sample(data: Data, folder: Path, tables: Sequence[Path]) -> Sample:
    """The objects of a folder that can be used, sorted by identifier, with labels from the tables, else from the files.

    Raises NotMeasured if the folder or a table isn't there, or holds nothing that can be read.
    """
    for path in (folder, *tables):
        if not path.exists():
            raise NotMeasured(f"{path} is not there: put {data.survey} {'files' if path is folder else 'labels'} there")
    try:
        found = {one.object_id: one for one in observations(data.survey, folder)}
        objects = tuple(found[name] for name in sorted(found))
        rows: dict[str, Mapping[str, Any]] = {one.object_id: dict(one.meta) for one in objects} if not tables else {}
        for path in tables:
            rows |= {row[data.key]: row for row in read_table(path, data.key).to_pylist()}
    except UserError as error:
        raise NotMeasured(str(error)) from error
    if not objects:
        raise NotMeasured(f"{folder} holds no {data.survey} object that can be used")
    mine = [rows.get(one.object_id, {}) for one in objects]
    columns = {**data.parameters, **{f"{name} bound": column for name, column in data.bounds.items()}}
    values = {name: np.array([_number(row.get(column), data.missing) for row in mine]) for name, column in columns.items()}
    classes = [str(row.get(data.object_class or "", "") or "").strip() for row in mine]
    return Sample(objects, values, np.array(["" if c.lower() in NO_CLASS else c for c in classes], np.str_), tuple(mine))


def _number(cell: Any, missing: Sequence[float]) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return float("nan")
    return float("nan") if value in missing or not np.isfinite(value) else value


def subset(sample: Sample, amount: float, seed: int) -> Sample:
    """A share (up to 1) or number (more than 1) of the objects at random, each class with its share and at least 5 objects
    where it has them; the smaller is part of the larger of the same seed."""
    share = amount if amount <= 1 else amount / len(sample)
    if share >= 1:
        return sample
    rng, chosen = np.random.default_rng(seed), []
    for name in sorted(set(sample.classes.tolist())):
        members = rng.permutation(np.flatnonzero(sample.classes == name))
        chosen.append(members[: max(min(5, len(members)), round(share * len(members)))])
    return sample[np.sort(np.concatenate(chosen))]


@dataclass(frozen=True)
class Pixels:
    """Spectra interpolated to one grid (m,): flux over its median (n, m) and the ivar that goes with it; NaN and 0 where there
    is no good pixel near."""

    grid: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray

    def filled(self) -> np.ndarray:
        """Flux with gaps at the mean of the good pixels of the same wavelength."""
        good = np.isfinite(self.flux)
        count = good.sum(0)
        mean = np.where(count, np.where(good, self.flux, 0).sum(0) / np.maximum(count, 1), 1.0)
        return np.where(good, self.flux, mean)

    def flattened(self) -> tuple[np.ndarray, np.ndarray]:
        """Flux over its local level (Gaussian, good pixels only), 1 in gaps, and the ivar of that: (n, m) each."""
        good = (self.ivar > 0) & np.isfinite(self.flux)
        flux, weight = np.where(good, self.flux, 0.0), good.astype(np.float64)
        level = gaussian_filter1d(flux, LEVEL, axis=1) / np.maximum(gaussian_filter1d(weight, LEVEL, axis=1), 1e-6)
        use = good & (np.abs(level) > 0.02)
        flat = np.where(use, np.clip(flux / np.where(use, level, 1.0), -3, 5), 1.0)
        return flat, np.where(use, self.ivar * level**2, 0.0)


def pixels(objects: Sequence[Observation], grid: np.ndarray | None = None) -> Pixels:
    """Spectra on a grid; without one, on that of the object with the most pixels. An object without a spectrum has no pixel."""
    if grid is None:
        longest = max(objects, key=lambda one: sum(len(a.flux) for a in one.arms))
        grid = np.unique(np.concatenate([a.wavelength for a in longest.arms]))
    rows = []
    for one in objects:
        scale = one.amplitude or 1.0
        if not any((a.ivar > 0).any() for a in one.arms):
            rows.append((np.full(len(grid), np.nan), np.zeros(len(grid))))
            continue
        arms = [(a.wavelength, a.flux / scale, a.ivar * scale**2) for a in one.arms]
        near = np.zeros(len(grid), bool)  # a good pixel within two steps of the grid
        for wavelength, _, ivar in arms:
            at = np.searchsorted(grid, wavelength[ivar > 0]).clip(1, len(grid) - 1)
            near[at], near[at - 1] = True, True
        errors = [(w, i, i) for w, _, i in arms]
        rows.append((on_grid(arms, grid), np.where(near, np.nan_to_num(on_grid(errors, grid)), 0.0)))
    values, weights = (np.stack(x).astype(np.float32) for x in zip(*rows, strict=True))
    return Pixels(grid, values, weights)
