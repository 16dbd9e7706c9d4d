"""The rows of a catalogue of objects with any set of measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcspec.catalog.merge import merge
from hpcspec.catalog.parts import write_part
from hpcspec.catalog.schema import Flag
from hpcspec.catalog.task import Predictor, plan, rows
from hpcspec.catalog.validate import validate
from hpcspec.config import Catalog
from hpcspec.stream.batches import ordered_batches
from hpcspec.stream.index import DataIndex, open_index
from hpcspec.surveys.observation import make_curve
from tests.kinds import make_run
from tests.making import curve, shard, spectrum, star

SETTINGS = Catalog(few_pixels=30, few_epochs=10, low_sn=5, ambiguous=0)
SHORT, LONG = curve(1, 6), curve(2, 40)
OTHER = make_curve("B", np.arange(40.0), 14 + 0.1 * np.sin(np.arange(40.0)), np.full(40, 0.01))
# object: whether it is flagged FEW_PIXELS
OBJECTS = {
    "long spectrum": (spectrum(0, pixels=60), False), "short spectrum": (spectrum(1, pixels=20), True),
    "short spectrum, long light curve": (spectrum(2, pixels=20, curves=(LONG,)), True),
    "long spectrum, short light curve": (spectrum(3, pixels=60, curves=(SHORT,)), False),
    "long light curve": (spectrum(4, (), curves=(LONG,)), False), "short light curve": (spectrum(5, (), curves=(SHORT,)), True),
    "two short light curves": (spectrum(6, (), curves=(SHORT, curve(3, 8, "R"))), False),
    "scalars": (spectrum(7, (), scalars={"teff": (5000.0, 10.0)}), False), "everything": (star(8, 60, 20), False),
    "a band that isn't read": (spectrum(9, (), curves=(OTHER,)), True),
    "a scalar that isn't read": (spectrum(10, (), scalars={"age": (5.0, 1.0)}), True),
}  # fmt: skip


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    run = make_run(tmp_path_factory.mktemp("task"))
    return Predictor(run.config(), run.weights, run.adapted)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    return open_index([shard(tmp_path_factory.mktemp("objects") / "sdss-0.h5", [one for one, _ in OBJECTS.values()])])


def catalogued(predictor: Predictor, index: DataIndex, budget: int = 10_000) -> dict[str, np.ndarray]:
    """The rows of all objects, in the order of the index."""
    batches = list(ordered_batches(index, np.arange(len(index)), predictor.model.vocabulary, budget))
    found = [predictor(batch) for batch in batches]
    numbers = np.concatenate([batch.objects for batch in batches])
    out = rows(index, numbers, {k: np.concatenate([f[k] for f in found]) for k in found[0]}, predictor.task, SETTINGS)
    return {name: column[np.argsort(numbers)] for name, column in out.items()}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_with_few_good_samples_are_flagged(predictor: Predictor, index: DataIndex, name: str) -> None:
    flags = catalogued(predictor, index)["flags"][list(OBJECTS).index(name)]
    assert bool(flags & Flag.FEW_PIXELS) == OBJECTS[name][1]


def test_nothing_in_a_catalogue_is_nan_but_what_doesn_t_apply_and_the_batches_don_t_matter(
    predictor: Predictor, index: DataIndex, tmp_path: Path
) -> None:
    whole = catalogued(predictor, index)
    for name, column in whole.items():
        assert column.dtype.kind in "US" or np.isfinite(column).all(), name
    single = catalogued(predictor, index, 1)
    for name, column in whole.items():
        if column.dtype.kind == "f":
            np.testing.assert_allclose(single[name], column, rtol=1e-3, atol=1e-4, err_msg=name)
        elif name != "flags":
            np.testing.assert_array_equal(single[name], column, err_msg=name)


def test_light_curves_without_a_position_are_published(predictor: Predictor, tmp_path: Path) -> None:
    ones = [spectrum(n, (), curves=(curve(n, 30),), **({"ra": np.nan, "dec": np.nan} if n % 2 else {})) for n in range(6)]
    index = open_index([shard(tmp_path / "asas-0.h5", ones, survey="asas")])
    found = catalogued(predictor, index)
    lost = np.array([n % 2 for n in range(6)], bool)
    np.testing.assert_array_equal((found["flags"] & Flag.NO_POSITION) != 0, lost)
    assert (found["_healpix_29"][lost] == -1).all() and (found["_healpix_29"][~lost] >= 0).all()
    write_part(tmp_path / "parts/part-00000.parquet", found, {"model_hash": predictor.hash})
    merge([tmp_path / "parts/part-00000.parquet"], tmp_path / "out", "asas", predictor.columns, {"model_hash": predictor.hash}, 6)
    assert [c for c in validate(tmp_path / "out") if not c.ok] == []


def test_pieces_hold_all_objects_whatever_their_kinds(predictor: Predictor, index: DataIndex) -> None:
    config = predictor.config.model_copy(update={"catalog": Catalog(pieces=3)})
    pieces = plan(index, config, predictor.model.vocabulary)
    assert [p.start for p in pieces] == [0, *(p.stop for p in pieces[:-1])] and pieces[-1].stop == len(index)
