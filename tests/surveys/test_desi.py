"""DESI: many objects a file, exposures combined, sky fibres, redshifts beside."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcspec.surveys import desi
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.grids import Grid
from hpcspec.surveys.observation import Observation
from tests.surveys.layouts import BAD, desi_coadd, desi_spectra
from tests.surveys.layouts import desi as write_desi


def objects(folder: Path, epochs: bool = False) -> dict[str, Observation | Quarantined]:
    found = [o for source in desi.discover(folder) for o in desi.read(replace(source, epochs=epochs))]
    assert len({o.object_id for o in found}) == len(found)
    return {o.object_id: o for o in found}


def test_a_coadd_file(tmp_path: Path) -> None:
    desi_coadd(tmp_path)
    assert [len(source.paths) for source in desi.discover(tmp_path)] == [2]
    found = objects(tmp_path)
    assert found["8"].reason == "sky fibre"
    first, second = found["39633345008634465"], found["7"]
    assert [arm.name for arm in first.arms] == ["B", "R", "Z"] and [arm.name for arm in second.arms] == ["R", "Z"]
    assert {arm.grid for arm in first.arms} == {Grid("linear", 3600.0, 0.8)}
    assert [arm.first for arm in first.arms] == [0, 2700, 4900]
    assert (first.meta["z"], first.meta["spectype"], first.meta["zwarn"]) == (1.5, "QSO", 4)
    assert (second.meta["z"], second.meta["spectype"], second.meta["subtype"]) == (0.5, "STAR", "M")


def test_exposures_are_combined_with_their_weights() -> None:
    flux = np.array([[1.0, 2.0, np.nan, 7.0], [9.0, 9.0, 9.0, 9.0], [3.0, 5.0, 4.0, 7.0]], "f4")
    ivar = np.array([[1.0, 0.0, 1.0, 0.0], [9.0, 9.0, 9.0, 9.0], [3.0, 2.0, 5.0, 0.0]], "f4")
    arm = desi.Band("B", Grid("linear", 3600.0, 0.8), 0, flux, ivar).arm(np.array([0, 2]))
    assert arm.flux.tolist() == [2.5, 5.0, 4.0, 0.0] and arm.ivar.tolist() == [4.0, 2.0, 5.0, 0.0]


def test_a_spectra_file_gives_each_object_once(tmp_path: Path) -> None:
    desi_spectra(tmp_path)
    found = objects(tmp_path)
    assert [arm.name for arm in found["6"].arms] == ["R", "Z"]
    assert set(found["5"].arms[0].ivar) == {0, 8} and set(found["7"].arms[0].ivar) == {0, 4}
    assert found["5"].arms[0].ivar[BAD] == 0


def test_each_exposure_is_an_epoch(tmp_path: Path) -> None:
    desi_spectra(tmp_path)
    found = objects(tmp_path, epochs=True)
    assert list(found) == ["5@101", "6@101", "5@102", "7@101"]
    second = found["5@102"]
    assert isinstance(second, Observation) and set(second.arms[0].ivar) == {0, 4}
    assert {"target_id": "5", "expid": 102, "night": 20210419, "mjd": 59001.5}.items() <= second.meta.items()


def test_a_coadd_has_no_epochs(tmp_path: Path) -> None:
    desi_coadd(tmp_path)
    assert list(objects(tmp_path, epochs=True)) == list(objects(tmp_path))


def test_exposures_that_the_survey_calls_bad_are_left_out(tmp_path: Path) -> None:
    bad, amp, poor = desi.BAD_FIBER["BADPOSITION"], desi.BAD_AMP["R"], 1 << 10
    desi_spectra(tmp_path, FIBERSTATUS=np.array([bad | 8, amp, poor, desi.UNASSIGNED], "i4"))
    found = objects(tmp_path)
    assert set(found["5"].arms[0].ivar) == {0, 4}  # the good exposure alone
    assert (found["5"].meta["fiberstatus"], found["5"].meta["numexp"]) == (poor, 1)
    assert [arm.name for arm in found["6"].arms] == ["Z"] and found["6"].meta["fiberstatus"] == amp
    assert found["7"].reason == "fibre without an object: FIBERSTATUS UNASSIGNED"
    epochs = objects(tmp_path, epochs=True)
    assert epochs["5@101"].reason == "no good exposure: FIBERSTATUS BADPOSITION" and isinstance(epochs["5@102"], Observation)


def test_a_coadd_of_nothing_but_bad_exposures(tmp_path: Path) -> None:
    write_desi(tmp_path, "coadd", [5, 6], COADD_FIBERSTATUS=np.array([1 << 2 | 1 << 16, 1 << 3], "i4"))
    found = objects(tmp_path)
    assert found["5"].reason == "no good exposure: FIBERSTATUS BROKENFIBER, BADFIBER"
    assert isinstance(found["6"], Observation) and found["6"].meta["coadd_fiberstatus"] == 1 << 3


def test_two_stars_of_one_identifier_are_not_averaged(tmp_path: Path) -> None:
    write_desi(tmp_path, "coadd", [5, 6, 5, 5], shares=np.array([0, 0, 0.5, 0.5]), TARGET_RA=np.array([10.0, 20, 30, 10]))
    alone = tmp_path / "alone"
    alone.mkdir()
    write_desi(alone, "coadd", [5, 6])
    (source,) = (s for s in desi.discover(tmp_path) if "alone" not in s.key)
    five, six, *later = desi.read(source)
    assert isinstance(five, Observation) and isinstance(six, Observation) and (five.object_id, six.object_id) == ("5", "6")
    assert five.ra == 10 and np.array_equal(five.arms[1].flux, objects(alone)["5"].arms[1].flux)
    assert [o.object_id for o in later] == ["5", "5"] and all(o.reason.startswith("duplicate identifier: row") for o in later)


@pytest.mark.parametrize("epochs", [False, True])
def test_only_exposures_of_one_place_are_one_object(epochs: bool, tmp_path: Path) -> None:
    """Rows beside the first one: another star, half an arcsecond off across RA 0, the same exposure again, no position."""
    ra = np.array([359.99995, 10.0, 5e-5, 359.99995, np.nan])
    exposures = {"EXPID": np.array([101, 102, 103, 101, 104], "i4"), "TARGET_DEC": np.full(5, 60.0)}
    write_desi(tmp_path, "spectra", [5] * 5, TARGET_RA=ra, **exposures)
    (source,) = desi.discover(tmp_path)
    found = list(desi.read(replace(source, epochs=epochs)))
    good, bad = found[: 1 + epochs], found[1 + epochs :]
    assert [o.object_id for o in good] == (["5@101", "5@103"] if epochs else ["5"])
    assert set(good[0].arms[1].ivar) == ({0, 4} if epochs else {0, 8})
    assert [o.reason.split(" is ")[0] for o in bad] == [f"duplicate identifier: row {row}" for row in (1, 3, 4)]


def test_a_damaged_redshift_file_costs_the_redshifts_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    desi_coadd(tmp_path)
    (tmp_path / "redrock-0-1-thru2.fits").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        found = objects(tmp_path)
    assert isinstance(found["7"], Observation) and "z" not in found["7"].meta
    assert "no redshifts from" in caplog.text and "redrock-0-1-thru2.fits" in caplog.text


def test_flipped_bytes_are_found_by_the_checksum_and_no_object_is_lost(tmp_path: Path) -> None:
    desi_coadd(tmp_path)
    path = tmp_path / "coadd-0-1-thru2.fits"
    content = bytearray(path.read_bytes())
    content[-2880] ^= 255  # the first byte of the last block: the mask of arm Z
    path.write_bytes(content)
    found = objects(tmp_path)
    assert list(found) == ["39633345008634465", "7", "8"]
    assert all(isinstance(o, Quarantined) and "DATASUM" in o.reason for o in found.values())


def test_real_files(real_data: Path) -> None:
    folder = real_data / "desi"
    if not folder.is_dir():
        pytest.skip(f"no DESI files in {real_data}")
    sources = {source.paths[0].name: source for source in desi.discover(folder)}
    assert not any(name.startswith("redrock") for name in sources)
    (galaxy,) = desi.read(sources["coadd-4-80613-thru20210324.fits.gz"])
    assert isinstance(galaxy, Observation) and galaxy.object_id == "39633345008634465"
    assert galaxy.meta["z"] == pytest.approx(0.36874355) and galaxy.meta["spectype"] == "GALAXY"
    assert [len(arm.flux) for arm in galaxy.arms] == [2751, 2326, 2881]
    for name in ("coadd-5-169-thru20210419.fits.gz", "spectra-5-169-thru20210419.fits.gz"):
        found = {o.object_id: o for o in desi.read(sources[name])}
        assert len(found) == 5 and [k for k, o in found.items() if isinstance(o, Observation)] == ["39633300968442591"]
        reasons = {key: o.reason for key, o in found.items() if isinstance(o, Quarantined)}
        assert reasons.pop("-1695073") == "fibre without an object: FIBERSTATUS UNASSIGNED"
        assert set(reasons.values()) == {"no good exposure: FIBERSTATUS BADPOSITION"}
    quasars = list(desi.read(sources["coadd-1-80693-thru20210204.fits.gz"]))
    assert len(quasars) == 5 and all(isinstance(o, Observation) and len(o.arms) == 3 for o in quasars)
