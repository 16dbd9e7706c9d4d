"""A run used from Python gives what its catalogue says."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

import hpcspec
from hpcspec.errors import UserError
from hpcspec.surveys.observation import Observation
from hpcspec.trained import Trained
from tests.tiny import Tiny


@pytest.fixture(scope="module")
def trained(tiny: Tiny) -> Trained:
    return hpcspec.load(tiny.run)


@pytest.fixture(scope="module")
def stars(tiny: Tiny) -> list[Observation]:
    """The observations of the run's APOGEE files, in the order of the catalogue."""
    by_id = {one.object_id: one for one in hpcspec.observations("apogee", tiny.inputs / "apogee")}
    return [by_id[i] for i in Table.read(tiny.run / "catalog/apogee/hpcspec-apogee.fits")["object_id"]]


def test_embeddings_are_those_of_the_catalogue(tiny: Tiny, trained: Trained, stars: list[Observation]) -> None:
    table = pq.read_table(tiny.run / "catalog/apogee/hpcspec-apogee-embeddings.parquet")
    assert table["object_id"].to_pylist() == [one.object_id for one in stars]
    wanted = np.stack(table["embedding"].to_numpy())
    rounded = 3e-5 * np.abs(wanted).max()  # the map's directions of least variance magnify what is left of it
    np.testing.assert_allclose(trained.embed(stars), wanted, atol=rounded)
    np.testing.assert_allclose(trained.embed(iter(stars[::-1])), wanted[::-1], atol=rounded)
    assert trained.embed([]).shape == (0, wanted.shape[1])


def test_predictions_are_those_of_the_catalogue(tiny: Tiny, trained: Trained, stars: list[Observation]) -> None:
    wanted, found = Table.read(tiny.run / "catalog/apogee/hpcspec-apogee.fits"), trained.predict(stars)
    assert found["object_id"].tolist() == wanted["object_id"].tolist() and found["class"].tolist() == wanted["class"].tolist()
    for name in trained.parameters:
        applies = np.isfinite(np.ma.filled(wanted[name].astype(float), np.nan))
        for column in (name, f"{name}_err", f"{name}_err95"):
            np.testing.assert_allclose(found[column][applies], wanted[column][applies], rtol=2e-3, atol=1e-3)
    some = trained.predict(stars[:2], trained.parameters[:1])
    assert some.colnames[-3:] == [trained.parameters[0] + end for end in ("", "_err", "_err95")] and len(some) == 2
    with pytest.raises(UserError, match="has not learned 'age': it knows "):
        trained.predict(stars, ["age"])


def test_spectra_at_other_wavelengths(trained: Trained, stars: list[Observation]) -> None:
    """Any grid is answered, in the unit of the object's flux, and each object by itself."""
    wavelengths = 15200 + 0.3 * np.arange(100)  # three patches and a part of one
    flux, error = trained.generate(stars, wavelengths)
    assert flux.shape == error.shape == (len(stars), 100) and np.isfinite(flux).all() and (error > 0).all()
    alone, _ = trained.generate(stars[3:4], wavelengths)
    np.testing.assert_allclose(alone[0], flux[3], rtol=1e-3, atol=1e-4 * np.abs(flux[3]).max())
    arm = stars[0].arms[0]
    louder = hpcspec.spectrum(arm.wavelength, 1000 * arm.flux, arm.ivar / 1e6)
    quiet = hpcspec.spectrum(arm.wavelength, arm.flux, arm.ivar)
    (one, other), _ = trained.generate([quiet, louder], wavelengths)
    assert 100 < np.median(other / one) < 10000
    for wrong in ([], [4000.0, 3999.0], [-1.0, 2.0], [np.nan]):
        with pytest.raises(UserError, match="wavelengths are one ascending array"):
            trained.generate(stars, np.array(wrong))


def test_a_spectrum_is_most_like_itself(trained: Trained, stars: list[Observation]) -> None:
    embedding = trained.embed(stars)
    rows, likeness = trained.search(embedding, embedding, 3)
    assert rows.shape == (len(stars), 3) and rows[:, 0].tolist() == list(range(len(stars)))
    assert np.allclose(likeness[:, 0], 1, atol=1e-5) and (np.diff(likeness, axis=1) <= 0).all()
    assert trained.search(embedding[:1], embedding[:2], 9)[0].shape == (1, 2)


def test_what_is_no_spectrum_or_no_run_is_a_user_error(trained: Trained, tmp_path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        hpcspec.load(tmp_path)
    x = np.linspace(4000.0, 5000.0, 64)
    for flux, ivar in ((np.ones(64), np.zeros(64)), (np.full(64, np.nan), np.ones(64))):
        with pytest.raises(UserError, match="spectrum: "):
            trained.embed([hpcspec.spectrum(x, flux, ivar)])
    with pytest.raises(AttributeError, match="nothing"):
        _ = hpcspec.nothing
