"""DESI: many objects a file, exposures combined, sky fibres, redshifts beside."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from hpcspec.surveys import desi
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.grids import Grid
from hpcspec.surveys.observation import Observation
from tests.surveys.layouts import BAD, desi_coadd, desi_spectra


def objects(folder: Path) -> dict[str, Observation | Quarantined]:
    return {found.object_id: found for source in desi.discover(folder) for found in desi.read(source)}


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
        assert all("no valid pixel" in o.reason for o in found.values() if isinstance(o, Quarantined))
    quasars = list(desi.read(sources["coadd-1-80693-thru20210204.fits.gz"]))
    assert len(quasars) == 5 and all(isinstance(o, Observation) and len(o.arms) == 3 for o in quasars)
