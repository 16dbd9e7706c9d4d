"""Catalogues beside the spectra: found by name, joined by identifier, never read as spectra, never fatal."""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from hpcspec.errors import UserError
from hpcspec.surveys import apogee, desi, galah
from hpcspec.surveys.catalogue import Join, Table, look_up, split
from hpcspec.surveys.observation import Observation
from tests.surveys.layouts import STAR, apstar, apvisit, desi_coadd, galah_dr3, galah_six, table

COLUMNS = {"x": ("X", "OLD_X"), "x_err": ("X_ERR",), "name": ("NAME",), "gaia_id": ("GAIA",)}
JOIN = Join(re.compile(r"^cat"), "ID", COLUMNS, ("BEST",))
NAME = STAR["OBJID"]
SOBJECT = "161013005401394"


def write(path: Path, columns: dict[str, np.ndarray], name: str = "") -> Path:
    fits.HDUList([fits.PrimaryHDU(), table(columns, name)]).writeto(path, overwrite=True, checksum=True)
    return path


def one(reader: Any, folder: Path) -> dict[str, Observation]:
    return {found.object_id: found for source in reader.discover(folder) for found in reader.read(source)}


@pytest.mark.parametrize("kind", ["i8", "i4", "S"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_row_is_found_by_its_identifier(kind: str, packed: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    numbers = rng.permutation(np.arange(-500, 500)) * (4_000_000_000_000_001 if kind == "i8" else 1001)
    ids = np.char.mod("2M%d ", numbers) if kind == "S" else numbers.astype(kind)
    path = write(tmp_path / "cat.fits", {"id": ids, "X": np.arange(1000.0)})
    if packed:
        path.with_name("cat.fits.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = path.with_name("cat.fits.gz")
    found = [look_up([path], JOIN, str(i).strip()) for i in ids]
    assert found == [{"x": float(i)} for i in range(1000)]
    for unknown in ("2Mx", "5", "", "1" * 40, "é"):
        assert look_up([path], JOIN, unknown) == {}


def test_only_values_that_say_something_are_joined(tmp_path: Path) -> None:
    columns = {
        "ID": np.arange(4), "OLD_X": np.array([1.5, -9999, np.nan, -5]), "X_ERR": np.array([0.5, -1, 0, np.inf]),
        "NAME": np.array(["a ", "", "c", "d"]), "GAIA": np.array([2**62 + 1, 0, -9999, 7]),
    }  # fmt: skip
    path = write(tmp_path / "cat.fits", columns)
    found = [look_up([path], JOIN, str(i)) for i in range(4)]
    assert found[0] == {"x": 1.5, "x_err": 0.5, "name": "a", "gaia_id": 2**62 + 1}
    assert found[1:] == [{}, {"name": "c"}, {"x": -5.0, "name": "d", "gaia_id": 7}]
    assert isinstance(found[0]["gaia_id"], int)


def test_an_identifier_that_a_catalogue_keeps_as_a_float_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gaia = write(tmp_path / "cat1.fits", {"ID": np.arange(1), "X": np.ones(1), "GAIA": np.array([5.6e17])})
    assert look_up([gaia], JOIN, "0") == {"x": 1.0}
    key = write(tmp_path / "cat2.fits", {"ID": np.arange(2.0), "X": np.ones(2)})
    with caplog.at_level(logging.WARNING):
        assert look_up([key], JOIN, "1") == {}
    assert "cat2.fits" in caplog.text and "not one of identifiers" in caplog.text


def test_the_row_that_agrees_most_counts_then_the_preferred_one(tmp_path: Path) -> None:
    first = write(tmp_path / "cat1.fits", {"ID": np.array([1, 1, 1]), "X": np.array([1.0, 2, 3]), "TILE": np.array([5, 6, 6]),
                                           "BEST": np.array([True, False, True])})  # fmt: skip
    second = write(tmp_path / "cat2.fits", {"ID": np.array([1]), "X": np.array([4.0]), "TILE": np.array([7])})
    assert look_up([first, second], JOIN, "1", {"TILE": 5}) == {"x": 1.0}
    assert look_up([first, second], JOIN, "1", {"TILE": 6}) == {"x": 3.0}
    assert look_up([first, second], JOIN, "1", {"TILE": 7}) == {"x": 4.0}
    assert look_up([first, second], JOIN, "1") == {"x": 1.0}


def test_a_catalogue_is_opened_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    create = Table.__init__
    monkeypatch.setattr(Table, "__init__", lambda self, path, key: (opened.append(path), create(self, path, key))[1])
    path = write(tmp_path / "cat.fits", {"ID": np.arange(3), "X": np.zeros(3)})
    assert [look_up([path], JOIN, i)["x"] for i in "012"] == [0, 0, 0] and len(opened) == 1
    other = write(tmp_path / "other.fits", {"ID": np.arange(3), "X": np.ones(3)})
    os.replace(other, path)
    assert look_up([path], JOIN, "1")["x"] == 1 and len(opened) == 2


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "truncated gzip", "no key", "gone"])
def test_a_damaged_catalogue_costs_its_values_only(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    galah_dr3(tmp_path)
    path = write(tmp_path / "GALAH_DR3_main_allspec_v2.fits", {"sobject_id": np.arange(3000), "teff": np.ones(3000)})
    content = path.read_bytes()
    if damage == "no key":
        write(path, {"teff": np.ones(3)})
    sources = galah.discover(tmp_path)
    if damage == "gone":
        path.unlink()
    elif damage != "no key":
        packed = gzip.compress(content)
        path.write_bytes({"empty": b"", "text": b"no FITS " * 1000, "truncated": content[: len(content) // 2],
                          "truncated gzip": packed[: len(packed) // 2]}[damage])  # fmt: skip
    with caplog.at_level(logging.WARNING):
        found = [o for source in sources for o in galah.read(source)]
    assert [o.object_id for o in found] == [SOBJECT] and isinstance(found[0], Observation) and "teff" not in found[0].meta
    assert f"nothing joined from {path}" in caplog.text


def test_catalogues_follow_the_spectra_in_every_source(tmp_path: Path) -> None:
    galah_dr3(tmp_path)
    (tmp_path / "deep").mkdir()
    path = write(tmp_path / "deep" / "galah_dr4_allspec_240705.fits", {"sobject_id": np.array([int(SOBJECT)])})
    (source,) = galah.discover(tmp_path)
    assert [p.name for p in source.paths] == [f"{SOBJECT}{ccd}.fits" for ccd in "1234"] + [path.name]
    assert split(source, galah.CATALOGUE) == (source.paths[:4], (path,))


@pytest.mark.parametrize("reader", [apogee, desi, galah])
def test_a_folder_of_catalogues_alone_is_an_error(reader: Any, tmp_path: Path) -> None:
    for name in ("allStar-dr17-synspec_rev1.fits", "zall-pix-iron.fits", "GALAH_DR3_main_allstar_v2.fits"):
        if reader.CATALOGUE.names.search(name):
            write(tmp_path / name, {"X": np.ones(1)})
    with pytest.raises(UserError, match="catalogues but no spectra"):
        reader.discover(tmp_path)


def test_apogee_labels_of_the_spectrums_own_row(tmp_path: Path) -> None:
    apstar(tmp_path)
    write(tmp_path / "allStar-dr17-synspec_rev1.fits", {
        "APOGEE_ID": np.array([NAME, NAME, "2M0"]), "FIELD": np.array(["other", "120-45", "120-45"]),
        "TEFF": np.array([4000, 5000, 6000], "f4"), "TEFF_ERR": np.array([10, 20, 30], "f4"),
        "LOGG": np.array([4, -9999, 3], "f4"), "FE_H": np.array([0, -0.5, 0], "f4"), "FE_H_ERR": np.array([1, 0.125, 1], "f4"),
        "M_H": np.array([0, -0.25, 0], "f4"), "SNR": np.array([300, 200, 100], "f4"), "ASPCAPFLAG": np.array([0, 1 << 40, 0]),
        "GAIAEDR3_SOURCE_ID": np.array([1, 2829 * 10**15 + 1, 1]),
    })  # fmt: skip
    star = one(apogee, tmp_path)[NAME]
    assert star.meta["teff"] == 4000 and star.meta["snr"] == 79  # no field in the header: the row of the best spectrum
    with fits.open(tmp_path / "apStar-r6-2M00452143+1634446.fits", mode="update") as hdus:
        hdus[0].header["FIELD"] = "120-45  "
    star = one(apogee, tmp_path)[NAME]
    expected = {"teff": 5000.0, "teff_err": 20.0, "fe_h": -0.5, "fe_h_err": 0.125, "m_h": -0.25, "aspcapflag": 1 << 40,
                "gaia_id": 2829 * 10**15 + 1}  # fmt: skip
    assert expected.items() <= star.meta.items() and "logg" not in star.meta
    assert {name for name in star.meta if name in apogee.LABELS} == {"teff", "teff_err", "fe_h", "fe_h_err", "m_h"}


def test_apogee_parameters_in_an_array(tmp_path: Path) -> None:
    apvisit(tmp_path)
    covariance = np.zeros((1, 49), "f4")
    covariance[0, [0, 8, 24]] = 2500, 0.04, -1
    write(tmp_path / "allStar-v304.fits", {"APOGEE_ID": np.array([NAME]), "PARAM_COV": covariance,
                                           "PARAM": np.array([[4500, 2.5, 0, -0.75, 0, 0, -9999]], "f4")})  # fmt: skip
    found = {k: v for k, v in one(apogee, tmp_path)[NAME].meta.items() if k in apogee.LABELS}
    assert found == {"teff": 4500.0, "teff_err": 50.0, "logg": 2.5, "logg_err": pytest.approx(0.2), "m_h": -0.75}


@pytest.mark.parametrize(("name", "ra", "dec", "gaia"), [
    ("GALAH_DR3_main_allspec_v2.fits", "ra_dr2", "dec_dr2", "dr3_source_id"),
    ("galah_dr4_allstar_240705.fits", "ra", "dec", "gaiadr3_source_id"),
])  # fmt: skip
def test_galah_position_and_labels(name: str, ra: str, dec: str, gaia: str, tmp_path: Path) -> None:
    columns = {"sobject_id": np.array([1, int(SOBJECT)]), ra: np.array([1, 110.75]), dec: np.array([1, -7.5]),
               "teff": np.array([1, 5500], "f4"), "e_teff": np.array([1, 75.0]), "fe_h": np.array([1, np.nan], "f4"),
               "flag_sp": np.array([1, 2]), gaia: np.array([1, 3 * 10**18 + 1])}  # fmt: skip
    write(tmp_path / name, columns)
    galah_dr3(tmp_path)
    star = one(galah, tmp_path)[SOBJECT]
    assert (star.ra, star.dec, star.meta["position"]) == (110.75, -7.5, "object")
    expected = {"teff": 5500.0, "teff_err": 75.0, "flag_sp": 2, "gaia_id": 3 * 10**18 + 1, "arms": "BGRI"}
    assert expected.items() <= star.meta.items() and not {"fe_h", "ra", "dec"} & star.meta.keys()


def test_galah_positions_in_the_files_themselves_go_first(tmp_path: Path) -> None:
    galah_six(tmp_path)
    columns = {"sobject_id": np.array([int(SOBJECT)]), "ra": np.array([110.75]), "dec": np.array([-7.5])}
    write(tmp_path / "galah_dr4_allspec_240705.fits", columns)
    assert one(galah, tmp_path)[SOBJECT].ra == 110.5


def test_desi_redshifts_beside_go_before_the_catalogue(tmp_path: Path) -> None:
    desi_coadd(tmp_path)
    write(tmp_path / "zall-pix-iron.fits", {
        "TARGETID": np.array([7, 7, 39633345008634465]), "Z": np.array([8.0, 9.0, 10.0]), "ZWARN": np.array([0, 4, 0]),
        "SPECTYPE": np.array(["STAR", "QSO", "QSO"]), "ZCAT_PRIMARY": np.array([False, True, True]),
    }, "ZCATALOG")  # fmt: skip
    (source,) = desi.discover(tmp_path)
    assert [p.name.split("-")[0] for p in source.paths] == ["coadd", "redrock", "zall"]
    assert one(desi, tmp_path)["7"].meta["z"] == 0.5
    (tmp_path / "redrock-0-1-thru2.fits").unlink()
    found = one(desi, tmp_path)
    assert {"z": 9.0, "zwarn": 4, "class": "QSO", "spectype": "QSO"}.items() <= found["7"].meta.items()
    assert found["39633345008634465"].meta["z"] == 10.0


def test_real_label_tables(real_data: Path, tmp_path: Path) -> None:
    dr12 = real_data / "labels" / "APOGEE-allStar-v603-Hipparcos_3244.fits.gz"
    dr3 = real_data / "labels" / "galah_dr3_allspec_4rows_GALAH-Payne_4star.fits.gz"
    if not (dr12.is_file() and dr3.is_file()):
        pytest.skip(f"no label tables in {real_data}")
    with fits.open(dr12) as hdus:
        stars = hdus[1].data[:40]
        expected = {str(star["APOGEE_ID"]): star for star in stars}
    for name, star in expected.items():
        found = look_up([dr12], apogee.CATALOGUE, name)
        for ours, theirs in (("teff", "TEFF"), ("logg", "LOGG"), ("fe_h", "FE_H"), ("m_h", "PARAM_M_H")):
            assert found.get(ours, -9999.0) == float(star[theirs])
        assert found["aspcapflag"] == int(star["ASPCAPFLAG"])
    shutil.copy(dr3, tmp_path / "GALAH_DR3_main_allspec_v2.fits.gz")
    galah_dr3(tmp_path)
    for ccd in "1234":
        (tmp_path / f"{SOBJECT}{ccd}.fits").rename(tmp_path / f"141101003801339{ccd}.fits")
    star = one(galah, tmp_path)["141101003801339"]
    assert star.meta["position"] == "object" and 3500 < star.meta["teff"] < 8000 and star.meta["teff_err"] > 0
    assert (star.ra, star.dec) == pytest.approx((114.8254958, 5.22498889)) and star.meta["teff"] == pytest.approx(6467.9033)
    assert "gaia_id" not in star.meta  # the table has the smallest integer there, which means none
