"""The simulated surveys: same seed same bytes, readable by the ordinary readers, honest noise, labels that can be learned."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from sklearn.linear_model import Ridge

from hpcspec.errors import UserError
from hpcspec.simulate import COLUMNS, observations, simulate, truth
from hpcspec.simulate.__main__ import main
from hpcspec.simulate.instruments import INSTRUMENTS
from hpcspec.simulate.physics import Star
from hpcspec.surveys import reader
from hpcspec.surveys.observation import Observation

COUNTS = {"sdss": 12, "desi": 12, "apogee": 6, "galah": 6}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def labels(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "labels.csv", newline="") as stream:
        return {row["object_id"]: row for row in csv.DictReader(stream)}


def read(survey: str, folder: Path) -> list[Observation]:
    module = reader(survey)
    found = [item for source in module.discover(folder) for item in module.read(source)]
    quarantined = [item for item in found if not isinstance(item, Observation)]
    assert not quarantined
    return [item for item in found if isinstance(item, Observation)]


@pytest.fixture(scope="module")
def surveys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder, COUNTS, seed=3)
    return folder


def test_the_same_seed_gives_the_same_bytes_whatever_else_is_written(surveys: Path, tmp_path: Path) -> None:
    simulate(tmp_path, dict(reversed(COUNTS.items())), seed=3)
    assert digests(tmp_path) == digests(surveys)


def test_another_seed_gives_other_objects(surveys: Path, tmp_path: Path) -> None:
    simulate(tmp_path, {"apogee": 6}, seed=4)
    assert not set(labels(tmp_path / "apogee")) & set(labels(surveys / "apogee"))


@pytest.mark.parametrize("survey", COUNTS)
def test_more_objects_do_not_change_the_first(survey: str, surveys: Path, tmp_path: Path) -> None:
    simulate(tmp_path, {survey: 3}, seed=3)
    fewer, more = labels(tmp_path / survey), labels(surveys / survey)
    assert list(fewer.items()) == list(more.items())[:3]
    if survey != "desi":  # DESI packs a hundred targets into a file
        assert digests(tmp_path / survey).items() - digests(surveys / survey).items() == {
            ("labels.csv", digests(tmp_path / survey)["labels.csv"])
        }


@pytest.mark.parametrize("survey", COUNTS)
def test_readers_find_exactly_the_labelled_objects_on_the_native_grids(survey: str, surveys: Path) -> None:
    table = labels(surveys / survey)
    spectra = read(survey, surveys / survey)
    assert len(spectra) == COUNTS[survey]
    assert {s.object_id for s in spectra} == set(table)
    lengths = {"desi": [2751, 2326, 2881], "galah": [4096] * 4}
    for s in spectra:
        row = table[s.object_id]
        assert s.frame == ("rest" if survey == "apogee" else "observed")
        assert (s.ra, s.dec) == pytest.approx((float(row["ra"]), float(row["dec"])), abs=1e-6)
        assert s.sn_median == pytest.approx(float(row["sn"]), rel=0.1)
        if survey == "sdss":
            assert 3800 <= len(s.arms[0].flux) < 4600
        elif survey in lengths:
            assert [len(a.flux) for a in s.arms] == lengths[survey]
        for arm in s.arms:
            assert 0.9 < np.mean(arm.ivar > 0) < 1  # some pixels are bad
    by_id = {seen.object_id: seen for seen in observations(survey, COUNTS[survey], 3)}
    for s in spectra:
        ours = by_id[s.object_id].exposures
        for arm, exposure in zip(s.arms, ours, strict=True):
            offset = np.searchsorted(exposure.wavelength, arm.wavelength[0] * (1 - 1e-6))
            known = exposure.wavelength[offset : offset + len(arm.flux)]
            np.testing.assert_allclose(arm.wavelength, known, rtol=2e-7)  # a hundredth of a pixel
            assert offset <= 10 and len(exposure.wavelength) - len(known) <= 20  # a reader may trim bad ends


@pytest.mark.parametrize("survey", COUNTS)
def test_noise_is_what_the_files_say(survey: str, surveys: Path) -> None:
    """From the files alone and the noiseless evaluation: chi² per pixel is 1, and so is its spread."""
    instrument = INSTRUMENTS[survey]()
    index = {seen.object_id: seen.index for seen in observations(survey, COUNTS[survey], 3)}
    pulls = []
    for s in read(survey, surveys / survey):
        target = truth(survey, 3, index[s.object_id])
        noiseless = instrument.noiseless(target)
        for arm, model in zip(s.arms, instrument.arms, strict=True):
            first = int(np.argmin(abs(model.wavelength - arm.wavelength[0])))
            pull = (arm.flux - noiseless[model.name][first : first + len(arm.flux)]) * np.sqrt(arm.ivar)
            pulls.append(pull[arm.ivar > 0])
            assert np.mean(pulls[-1] ** 2) == pytest.approx(1, abs=0.15)
    pull = np.concatenate(pulls)
    assert np.mean(pull**2) == pytest.approx(1, abs=5 * np.sqrt(2 / len(pull)) + 1e-3)
    assert abs(np.mean(pull)) < 5 / np.sqrt(len(pull))


def test_sky_lines_are_flagged_and_have_large_errors(surveys: Path) -> None:
    with fits.open(next((surveys / "sdss").glob("spec-*.fits"))) as hdus:
        coadd = hdus["COADD"].data
        sky = (coadd["and_mask"] & 1 << 23) > 0
        assert 20 < sky.sum() < 0.2 * len(sky)
        assert np.median(coadd["ivar"][sky]) < 0.3 * np.median(coadd["ivar"][~sky])
    with fits.open(next((surveys / "apogee").glob("apStar-*.fits"))) as hdus:
        error, mask = hdus[2].data, hdus[3].data
        sky, gap = (mask & 1 << 12) > 0, (mask & 1 << 14) > 0
        assert np.median(error[sky]) > 5 * np.median(error[~sky & ~gap])
        assert gap.sum() == 8575 - 2920 - 2400 - 1894 and np.all(error[gap] == 1e10)


def test_files_are_valid_fits(surveys: Path) -> None:
    for survey in COUNTS:
        with fits.open(min((surveys / survey).glob("*.fits"))) as hdus:
            hdus.verify("exception")
            assert all("DATE" not in hdu.header for hdu in hdus)


def test_labels_table_has_the_classes_and_empty_cells_where_nothing_applies() -> None:
    kinds = np.array([truth("sdss", 5, i).kind for i in range(1500)])
    shares = [np.mean(kinds == k) for k in ("STAR", "GALAXY", "QSO")]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.04)
    assert {truth("apogee", 5, i).kind for i in range(50)} == {"STAR"}


def test_label_columns(surveys: Path) -> None:
    for survey in COUNTS:
        for row in labels(surveys / survey).values():
            assert tuple(row) == COLUMNS
            star = row["class"] == "STAR"
            assert all((row[c] != "") == star for c in ("teff", "logg", "fe_h")) and (row["z"] == "") == star
            if star:
                assert 3600 <= float(row["teff"]) <= 8000 and 0.5 <= float(row["logg"]) <= 5 and -2 <= float(row["fe_h"]) <= 0.5


def test_every_fifth_object_is_the_same_star_in_all_surveys(surveys: Path) -> None:
    tables = {s: list(labels(surveys / s).values()) for s in COUNTS}
    columns = ("class", "teff", "logg", "fe_h", "ra", "dec")
    for i in range(6):
        rows = {tuple(t[i][c] for c in columns) for t in tables.values()}
        assert len(rows) == (1 if i % 5 == 0 else 4)


def test_lines_answer_to_the_labels() -> None:
    """Equivalent widths around well-known lines move the way they do in real stars."""

    def width(centre: float, half: float, **change: float) -> float:
        known = {"teff": 5500.0, "logg": 4.4, "fe_h": 0.0} | change
        star = Star(0.0, 0.0, 0.0, 1.0, alpha_fe=0.0, velocity=0.0, broadening=5.0, **known)
        w = np.arange(centre - half, centre + half, 0.2)
        return float(np.sum(1 - star.flux(w, np.full(len(w), 1.2)) / star.continuum(w)) * 0.2)

    assert width(6564.6, 25, teff=7800.0) > 2 * width(6564.6, 25)  # Hα towards A stars
    assert width(5175.0, 25, fe_h=-1.0) < 0.6 * width(5175.0, 25)  # Mg b with metallicity
    assert width(5175.0, 25, teff=4500.0, logg=4.6) > 1.3 * width(5175.0, 25, teff=4500.0, logg=2.0)  # and with gravity
    assert width(8544.4, 20, teff=4500.0, logg=1.0) > 1.1 * width(8544.4, 20, teff=4500.0, logg=4.5)  # Ca triplet in giants
    assert width(7100.0, 40, teff=3700.0) > 5 * width(7100.0, 40, teff=4500.0)  # TiO in M stars


def test_labels_can_be_learned_from_the_pixels() -> None:
    """Ridge regression on 160 APOGEE spectra predicts 60 others far better than their scatter."""
    flux, known = [], []
    for seen in observations("apogee", 220, 8):
        y = np.concatenate([np.where(e.dead | e.skyline, np.nan, e.flux) for e in seen.exposures])
        flux.append(np.nan_to_num(y / np.nanmedian(y), nan=1.0))
        known.append(list(seen.target.labels.values()))
    x, y = np.array(flux), np.array(known)
    mean, scale = y[:160].mean(0), y[:160].std(0)
    guess = Ridge(10.0).fit(x[:160], (y[:160] - mean) / scale).predict(x[160:])
    error = np.std(guess - (y[160:] - mean) / scale, axis=0)
    assert np.all(error < [0.3, 0.4, 0.5]), error


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="lamots.*known are sdss"):
        simulate(tmp_path, {"lamots": 1}, 1)
    with pytest.raises(UserError, match="must not be negative"):
        simulate(tmp_path, {"sdss": -1}, 1)
    assert main([str(tmp_path), "--galah", "1", "--seed", "2"]) == 0
    assert len(list((tmp_path / "galah").glob("*.fits"))) == 4
    assert main([str(tmp_path), "--galah", "1", "--seed", "2"]) == 2
    assert "not empty" in capsys.readouterr().err


def test_progress_counts_up_to_the_total(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    simulate(tmp_path, {"sdss": 3}, 1, lambda *call: calls.append(call))
    assert calls == [("sdss", 1, 3), ("sdss", 2, 3), ("sdss", 3, 3)]
