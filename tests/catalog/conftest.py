"""A small catalogue with every kind of column, in parts and published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpcspec.catalog.merge import MergeReport, merge
from hpcspec.catalog.parts import write_part
from hpcspec.catalog.schema import Flag, class_column, columns
from hpcspec.shards.objects import healpix29

ROWS = 600
CLASSES, PARAMETERS = ("STAR", "GALAXY", "QSO"), ("teff", "logg", "z", "oddity")
COLUMNS = columns(CLASSES, PARAMETERS)
PROVENANCE = {"model_hash": "5f2a", "code": "0.1.0", "inputs": {"shards": 3, "seed": 7}, "timing": {"encode": 12.5}}
Rows = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def rows() -> Rows:
    """Columns by name; clustered on the sky, galaxies without stellar parameters, identifiers of two lengths."""
    rng = np.random.default_rng(20)
    ra, dec = rng.uniform(0, 360, ROWS), np.degrees(np.arcsin(rng.uniform(-1, 1, ROWS)))
    ra[:200], dec[:200] = rng.normal(150, 0.5, 200), rng.normal(2, 0.5, 200)
    p = rng.dirichlet(np.ones(3), ROWS).astype(np.float32)
    star = p.argmax(axis=1) == 0
    made = {
        "object_id": np.array([f"2M{i:05d}" if i % 3 else f"2M{i:05d}+long" for i in rng.permutation(ROWS)]),
        "survey": np.full(ROWS, "apogee"), "ra": ra, "dec": dec, "_healpix_29": healpix29(ra, dec),
        "sn_median": rng.lognormal(3, 1, ROWS).astype(np.float32),
        "class": np.array(CLASSES)[p.argmax(axis=1)], "class_prob": p.max(axis=1),
        **{class_column(label): p[:, i] for i, label in enumerate(CLASSES)},
        "anomaly": rng.random(ROWS).astype(np.float32), "flags": np.where(star, 0, Flag.NOT_APPLICABLE).astype(np.int32),
        "embedding": rng.normal(size=(ROWS, 8)).astype(np.float32),
    }  # fmt: skip
    for name, low, high in (("teff", 3500, 8000), ("logg", 0, 5), ("z", 0, 2), ("oddity", -5, 5)):
        error = rng.uniform(0.01, 1, ROWS)
        for column, value in ((name, rng.uniform(low, high, ROWS)), (f"{name}_err", error), (f"{name}_err95", 2.1 * error)):
            applies = star | (name not in ("teff", "logg"))
            made[column] = np.where(applies, value, np.nan).astype(np.float32)
    return made


Cut = Callable[..., list[Path]]


@pytest.fixture(scope="session")
def cut(rows: Rows) -> Cut:
    """Write the rows as parts: `order` (rows,) deals them, in that order, to `count` parts in `folder`."""

    def write(folder: Path, count: int = 3, order: np.ndarray | None = None, model: str = "5f2a", **changed) -> list[Path]:
        order = np.arange(ROWS) if order is None else order
        paths = []
        for i, chosen in enumerate(np.array_split(order, count)):
            paths.append(folder / f"part-{i:04d}.parquet")
            write_part(paths[-1], {n: v[chosen] for n, v in {**rows, **changed}.items()}, {"model_hash": model})
        return paths

    return write


def publish(parts: list[Path], out: Path, **changed: object) -> MergeReport:
    """Merge with the usual arguments."""
    given = {"survey": "apogee", "columns": COLUMNS, "provenance": PROVENANCE, "expected_rows": ROWS, **changed}
    return merge(parts, out, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def release(cut: Cut, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published folder with three quarantined rows, two of them equal; tests must not change it."""
    folder = tmp_path_factory.mktemp("catalog")
    lines = [{"path": "b.fits", "object_id": "x9", "reason": 'every flux is "NaN", or 0'},
             {"path": "a.fits", "object_id": "", "reason": "empty file"}]  # fmt: skip
    quarantine = folder.with_suffix(".jsonl")
    quarantine.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    publish(cut(folder / "parts"), folder, quarantine=quarantine, provenance={**PROVENANCE, "rows_in": ROWS + 3})
    return folder
