"""SDSS: identifiers, positions, catalogue values, and the real files against their table."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from hpcspec.surveys import sdss
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.observation import Observation
from tests.surveys.layouts import BAD, flux, sdss_full, sdss_lite


def only(folder: Path) -> Observation | Quarantined:
    (source,) = sdss.discover(folder)
    (found,) = sdss.read(source)
    return found


def test_the_fibres_position_and_the_catalogue_row(tmp_path: Path) -> None:
    sdss_lite(tmp_path)
    found = only(tmp_path)
    assert isinstance(found, Observation)
    assert (found.ra, found.dec) == (112.5, -3.25)  # not the plate's centre, which the header calls RA and DEC
    assert found.meta == {"plate": 3655, "mjd": 55240, "fiberid": 2, "class": "QSO", "subclass": "BROADLINE", "z": 2.5,
                          "z_err": pytest.approx(1e-3), "zwarning": 4, "sky": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("specobjid", "object_id"),
    [
        (np.array([4115164797179547649], "u8"), "4115164797179547649"),
        (np.array([4115164797179547649], "i8"), "4115164797179547649"),
        (np.array([4.115164797179547e18]), "3655552400002"),  # a float has already lost digits
        (np.array(["0"]), "3655552400002"),
        (np.array([""]), "3655552400002"),
    ],
)
def test_a_64_bit_identifier_keeps_every_digit(specobjid: np.ndarray, object_id: str, tmp_path: Path) -> None:
    sdss_lite(tmp_path)
    path = tmp_path / "spec-3655-55240-0002.fits"
    with fits.open(path, memmap=False) as hdus:
        row = fits.BinTableHDU.from_columns([c for c in hdus[2].columns if c.name != "SPECOBJID"]).data
        columns = [fits.Column(n, f"{row[n].itemsize}A" if row[n].dtype.kind == "U" else row.columns[n].format, array=row[n])
                   for n in row.names]  # fmt: skip
        kind = {"u": "K", "i": "K", "f": "D", "U": "22A"}[specobjid.dtype.kind]
        bzero = 2**63 if specobjid.dtype.kind == "u" else None
        columns.append(fits.Column("SPECOBJID", kind, array=specobjid, bzero=bzero))
        fits.HDUList([hdus[0], hdus[1], fits.BinTableHDU.from_columns(columns)]).writeto(path, overwrite=True)
    assert only(tmp_path).object_id == object_id


def test_real_files_agree_with_their_table(real_data: Path) -> None:
    folder = real_data / "sdss"
    if not (folder / "labels.csv").exists():
        pytest.skip(f"no SDSS files in {real_data}")
    with (folder / "labels.csv").open(newline="") as f:
        rows = {row["file"].removesuffix(".gz"): row for row in csv.DictReader(f)}
    seen = 0
    for source in sdss.discover(folder):
        (found,) = sdss.read(source)
        assert isinstance(found, Observation), found
        row, arm = rows[source.paths[0].name.removesuffix(".gz")], found.arms[0]
        assert found.object_id.isdigit() and len(found.object_id) >= 18
        assert (len(arm.flux), arm.grid.kind, arm.grid.start) == (int(row["npix"]), "log10", 0.0)
        assert arm.wavelength[[0, -1]] == pytest.approx([float(row["wmin"]), float(row["wmax"])], rel=1e-6)
        assert (found.ra, found.dec) == pytest.approx((float(row["ra"]), float(row["dec"])), abs=1e-6)
        assert (found.meta["class"], found.meta["subclass"]) == (row["class"].strip(), row["subclass"].strip())
        assert found.meta["z"] == pytest.approx(float(row["z"]), rel=1e-6)
        assert [found.meta[k] for k in ("plate", "mjd", "fiberid", "zwarning")] == [
            int(row[k]) for k in ("plate", "mjd", "fiberid", "zwarning")
        ]
        sky = "SKY" in source.key
        assert np.mean(arm.ivar > 0) > 0.5 and (found.sn_median > 0.3 or sky)
        assert (found.meta["zwarning"] & 1, found.meta.get("sourcetype") == "SKY") == (int(sky), sky)
        assert found.meta["sky"] == int(sky)
        seen += 1
    assert seen == len(rows)


def test_each_exposure_of_a_full_file(tmp_path: Path) -> None:
    sdss_full(tmp_path)
    (source,) = sdss.discover(tmp_path)
    first, second = sdss.read(replace(source, epochs=True))
    assert isinstance(first, Observation) and isinstance(second, Observation)
    assert [o.object_id for o in (first, second)] == ["4115164797179547648@118", "4115164797179547648@119"]
    assert [[arm.name for arm in o.arms] for o in (first, second)] == [["b", "r"], ["b"]]
    blue, red = first.arms
    assert blue.flux.tolist() == pytest.approx((flux(60) + 1).tolist()) and np.flatnonzero(blue.ivar == 0).tolist() == [BAD]
    assert blue.wavelength[[0, -1]] == pytest.approx(10.0 ** np.array([3.58, 3.58 + 0.9e-4 * 59]), rel=1e-6)
    assert red.wavelength[0] == pytest.approx(10**3.76, rel=1e-6) and second.arms[0].flux[0] == pytest.approx(12)
    expected = {"target_id": "4115164797179547648", "expid": 118, "exptime": 900.0, "z": 2.5, "plate": 3655}
    assert expected.items() <= first.meta.items() and first.meta["mjd"] == pytest.approx(55240.25 + 450 / 86400, abs=1e-9)


def test_a_lite_file_has_no_exposures_and_gives_its_coadd(tmp_path: Path) -> None:
    sdss_lite(tmp_path)
    (source,) = sdss.discover(tmp_path)
    (found,) = sdss.read(replace(source, epochs=True))
    assert found.object_id == "4115164797179547648" and [arm.name for arm in found.arms] == ["coadd"]


def test_a_damaged_exposure_is_quarantined_alone(tmp_path: Path) -> None:
    sdss_full(tmp_path)
    (source,) = sdss.discover(tmp_path)
    with fits.open(source.paths[0], mode="update", memmap=False) as hdus:
        hdus["B1-00000119-00000120-00000121"].data["ivar"] = 0
    first, second = sdss.read(replace(source, epochs=True))
    assert isinstance(first, Observation) and isinstance(second, Quarantined)
    assert second.object_id.endswith("@119") and "no valid pixel" in second.reason


def test_real_exposures_add_up_to_the_coadd(real_data: Path) -> None:
    folder = real_data / "sdss" / "stars_pyhammer"
    if not folder.is_dir():
        pytest.skip(f"no full SDSS files in {real_data}")
    for source in sdss.discover(folder):
        (coadd,) = sdss.read(source)
        exposures = list(sdss.read(replace(source, epochs=True)))
        assert len(exposures) >= 3 and all(isinstance(o, Observation) and len(o.arms) == 2 for o in exposures)
        assert len({o.object_id for o in exposures}) == len(exposures) == len({o.meta["mjd"] for o in exposures})
        assert all(abs(o.meta["mjd"] - coadd.meta["mjd"]) < 1 for o in exposures)
        whole = coadd.arms[0]
        for o in exposures:
            for arm in o.arms:
                inside = (whole.ivar > 0) & (whole.wavelength > arm.wavelength[200]) & (whole.wavelength < arm.wavelength[-200])
                level = np.interp(whole.wavelength[inside], arm.wavelength, arm.flux)
                assert np.median(level) / np.median(whole.flux[inside]) == pytest.approx(1, abs=0.15)
            assert 0.2 < o.sn_median / coadd.sn_median < 0.8
