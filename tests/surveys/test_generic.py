"""Spectra that specutils identifies, and the reader that the documentation shows."""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from astropy.table import Table

from hpcspec import surveys
from hpcspec.errors import UserError
from hpcspec.surveys import desi, generic, sdss
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.grids import air_to_vacuum
from hpcspec.surveys.observation import Observation
from tests.surveys.layouts import BAD, desi_coadd, flux, lamost_dr1

N = 60
CGS = "erg / (s cm2 Angstrom)"
specutils = pytest.importorskip("specutils", reason="specutils is an optional dependency")
PAGE = Path(__file__).parents[2] / "docs" / "add-a-survey.md"


def read(folder: Path) -> list[Observation | Quarantined]:
    return [found for source in generic.discover(folder) for found in generic.read(source)]


def plain_fits(path: Path, ctype: str = "WAVE", **cards: str | float) -> None:
    noise = np.random.default_rng(3).normal(0, 0.5, N)
    hdu = fits.PrimaryHDU(1e-16 * (20 + noise))
    hdu.header.update(CRVAL1=5000.0, CDELT1=2.0, CRPIX1=1.0, CTYPE1=ctype, CUNIT1="Angstrom", BUNIT=CGS, **cards)
    hdu.writeto(path)


def table_fits(path: Path, **columns: u.Quantity) -> None:
    wavelength = np.linspace(500, 600, N) * u.nm
    Table({"wavelength": wavelength, "flux": flux(N) * u.mJy, **columns}).write(path)


@pytest.mark.parametrize(("ctype", "medium"), [("WAVE", "vacuum"), ("AWAV", "air"), ("LINEAR", "unknown")])
def test_a_plain_spectrum_with_a_wcs(ctype: str, medium: str, tmp_path: Path) -> None:
    plain_fits(tmp_path / "x.fits", ctype, OBJECT="HD 1", RA="05:23:01.5", DEC="-10:30:00")
    (star,) = read(tmp_path)
    assert isinstance(star, Observation), star
    assert (star.object_id, star.survey, star.flux_unit) == ("HD 1", "generic", "1e-17 erg / (s cm2 Angstrom)")
    assert (star.ra, star.dec) == pytest.approx((15 * (5 + 23 / 60 + 1.5 / 3600), -10.5), abs=1e-9)
    expected = np.arange(5000, 5000 + 2 * N, 2.0)
    assert star.arms[0].wavelength == pytest.approx(air_to_vacuum(expected) if medium == "air" else expected, rel=1e-9)
    assert star.meta["wavelengths"] == medium and star.meta["error"] == "estimated" and "position" not in star.meta
    assert star.arms[0].flux.mean() == pytest.approx(200, rel=0.02)
    sigma = star.arms[0].ivar ** -0.5
    assert np.ptp(sigma) == 0 and sigma[0] == pytest.approx(5, rel=0.5)  # the noise that was put in


@pytest.mark.parametrize("suffix", ["fits", "ecsv"])
def test_a_table(suffix: str, tmp_path: Path) -> None:
    table_fits(tmp_path / f"star 5.{suffix}", uncertainty=np.full(N, 0.5) * u.mJy)
    (star,) = read(tmp_path)
    assert isinstance(star, Observation), star
    assert (star.object_id, star.flux_unit, star.meta["error"], star.meta["position"]) == ("star 5", "Jy", "given", "none")
    assert np.isnan(star.ra) and np.isnan(star.dec)
    assert star.arms[0].wavelength[[0, -1]] == pytest.approx([5000, 6000])
    assert star.arms[0].flux == pytest.approx(flux(N) / 1000) and star.arms[0].ivar == pytest.approx(np.full(N, 4e6))


def test_rows_and_bands_are_objects_and_arms(tmp_path: Path) -> None:
    desi_coadd(tmp_path)
    path = tmp_path / "coadd-0-1-thru20210101.fits"  # specutils knows DESI's files by their names
    with fits.open(tmp_path / "coadd-0-1-thru2.fits") as hdus:
        for hdu in hdus[2:]:
            kind = hdu.name.partition("_")[2]
            hdu.header["BUNIT"] = {"WAVELENGTH": "Angstrom", "FLUX": "10**-17 erg/(s cm2 Angstrom)",
                                   "IVAR": "10**+34 (s2 cm4 Angstrom2) / erg2"}.get(kind, "")  # fmt: skip
        hdus.writeto(path)
    (tmp_path / "coadd-0-1-thru2.fits").unlink()
    own = {o.object_id: o for s in desi.discover(tmp_path) for o in desi.read(s)}
    found = {o.object_id: o for o in read(tmp_path) if "coadd" in str(getattr(o, "path", "coadd"))}
    assert found.keys() == own.keys()
    for name in ("39633345008634465", "7"):
        one, other = found[name], own[name]
        assert (one.ra, one.dec, one.flux_unit) == (other.ra, other.dec, other.flux_unit)
        assert [arm.name for arm in one.arms] == [arm.name.lower() for arm in other.arms]
        for a, b in zip(one.arms, other.arms, strict=True):
            assert a.wavelength == pytest.approx(b.wavelength, rel=1e-9)
            assert a.flux == pytest.approx(b.flux) and a.ivar == pytest.approx(b.ivar)


def spectrum(**more: object) -> object:
    values = {"flux": flux(N) * u.Unit(CGS), "spectral_axis": np.linspace(5000, 6000, N) * u.AA, **more}
    return specutils.Spectrum(**values)


@pytest.mark.parametrize(
    "uncertainty",
    [StdDevUncertainty(np.full(N, 0.5)), VarianceUncertainty(np.full(N, 0.25)), InverseVariance(np.full(N, 4.0)),
     StdDevUncertainty(np.full(N, 0.5e17), unit="1e-17 erg / (s cm2 Angstrom)")],
)  # fmt: skip
def test_any_kind_of_uncertainty_becomes_ivar(uncertainty: object) -> None:
    one = generic._observation("x", [spectrum(uncertainty=uncertainty)], None, {}, False)
    assert one.arms[0].ivar == pytest.approx(np.full(N, 4e-34), rel=1e-5)


def test_an_uncertainty_of_unknown_kind_or_of_zero_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_fits(tmp_path / "x.fits")
    for uncertainty, reason in ((UnknownUncertainty(np.ones(N)), "kind"), (InverseVariance(np.zeros(N)), "no valid pixel")):
        monkeypatch.setattr(generic, "_load", lambda path, given=uncertainty: [spectrum(uncertainty=given)])
        (found,) = read(tmp_path)
        assert isinstance(found, Quarantined) and reason in found.reason


def test_masks_falling_wavelengths_and_frequencies(tmp_path: Path) -> None:
    mask = np.zeros(N, bool)
    mask[BAD] = True
    axis = np.linspace(500, 600, N) * u.THz
    given = spectrum(spectral_axis=axis, mask=mask, uncertainty=StdDevUncertainty(np.full(N, 0.5)))
    arm = generic._observation("x", [given], None, {}, False).arms[0]
    assert np.all(np.diff(arm.wavelength) > 0) and arm.wavelength[0] == pytest.approx(2.99792458e18 / 600e12)
    assert np.flatnonzero(arm.ivar == 0).tolist() == [N - 1 - BAD] and arm.flux[0] == pytest.approx(1e17 * flux(N)[-1], rel=1e-5)


def test_arms_are_told_from_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_fits(tmp_path / "x.fits", OBJECT="s")
    sigma = StdDevUncertainty(np.full(N, 0.5))
    blue, red = (spectrum(spectral_axis=np.linspace(a, a + 1000, N) * u.AA, uncertainty=sigma) for a in (5000, 5800))
    monkeypatch.setattr(generic, "_load", lambda path: [red, blue])
    (one,) = read(tmp_path)
    assert [arm.wavelength[0] for arm in one.arms] == [5000, 5800] and one.object_id == "x"
    monkeypatch.setattr(generic, "_load", lambda path: [blue, blue, red])
    assert [o.object_id for o in read(tmp_path)] == ["x#1", "x#2", "x#3"]
    rows = spectrum(flux=np.array([flux(N)] * 2) * u.Jy, uncertainty=StdDevUncertainty(np.full((2, N), 0.5)))
    monkeypatch.setattr(generic, "_load", lambda path: [rows])
    assert [o.object_id for o in read(tmp_path)] == ["x#1", "x#2"]


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "truncated gzip", "image", "no format", "no scatter"])
def test_a_file_that_is_no_spectrum_is_quarantined(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "x.fits"
    table_fits(path, uncertainty=np.full(N, 0.5) * u.mJy)
    content = path.read_bytes()
    packed = gzip.compress(content)
    path.write_bytes({"empty": b"", "text": b"no spectrum\n" * 500, "truncated": content[: len(content) * 2 // 3],
                      "truncated gzip": packed[: len(packed) * 2 // 3]}.get(damage, content))  # fmt: skip
    if damage == "image":
        fits.PrimaryHDU(np.ones((3, 4, 5))).writeto(path, overwrite=True)
    if damage == "no format":
        path.unlink()
        lamost_dr1(tmp_path)
    if damage == "no scatter":
        table = Table.read(content and path)
        table["flux"] = 1.0 * u.mJy
        table.remove_column("uncertainty")
        table.write(path, overwrite=True)
    found = read(tmp_path)
    assert found and all(isinstance(o, Quarantined) and o.reason and "\n" not in o.reason for o in found), found


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"RA": 10.5, "DEC": -3.25}, (10.5, -3.25)),
        ({"RA": "10.5", "DEC": "-3.25"}, (10.5, -3.25)),
        ({"RA": "01 00 00", "DEC": "+20 30 00"}, (15.0, 20.5)),
        ({"RA": 1.0, "DEC": 1.0, "PLUG_RA": 2.0, "PLUG_DEC": 3.0}, (2.0, 3.0)),
        ({"RA": "unknown", "DEC": "unknown"}, (np.nan, np.nan)),
        ({"RA": 10.5, "DEC": 99.0}, (np.nan, np.nan)),
        ({"RA": 0.0, "DEC": 0.0, "RADECSYS": "FK4"}, (0.640691, 0.278409)),  # B1950's origin in J2000
    ],
)
def test_positions(cards: dict[str, str | float], expected: tuple[float, float]) -> None:
    assert generic._position(cards) == pytest.approx(expected, abs=1e-3, nan_ok=True)


def test_without_specutils_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "specutils", None)
    with pytest.raises(UserError, match=re.escape('pip install "hpcspec[generic]"')):
        generic.discover(tmp_path)


def test_a_folder_without_spectra(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="input folder"):
            generic.discover(folder)


def test_real_files(real_data: Path) -> None:
    folders = [real_data / "desi" / "specutils", real_data / "sdss" / "fixtures"]
    if not all(folder.is_dir() for folder in folders):
        pytest.skip(f"no DESI and SDSS files in {real_data}")
    for folder, reader in zip(folders, (desi, sdss), strict=True):
        own = {o.object_id: o for s in reader.discover(folder) for o in reader.read(s) if isinstance(o, Observation)}
        found = {o.object_id: o for o in read(folder) if isinstance(o, Observation)}
        assert found.keys() == own.keys()
        for name, one in found.items():
            # Without PLUG_RA in the header of an SDSS file it is the plate's centre, up to 1.5 degrees away.
            assert (one.ra, one.dec) == pytest.approx((own[name].ra, own[name].dec), abs=1.5)
            for a, b in zip(one.arms, own[name].arms, strict=True):
                assert a.wavelength == pytest.approx(b.wavelength, rel=1e-6)
                both = (a.ivar > 0) & (b.ivar > 0)  # specutils takes every bit of SDSS's and_mask as bad
                assert both.mean() > 0.25 and a.flux[both] == pytest.approx(b.flux[both])
                assert a.ivar[both] == pytest.approx(b.ivar[both], rel=1e-5)


def test_the_documented_reader_works_as_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, entry = (re.search(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.S)[1] for kind in ("python", "toml"))
    module = re.search(r'mysurvey = "(.*)\.mysurvey"', entry)[1]
    site, files = tmp_path / "site", tmp_path / "files"
    for folder in (site / module, site / f"{module}-1.0.dist-info", files):
        folder.mkdir(parents=True)
    (site / module / "__init__.py").touch()
    (site / module / "mysurvey.py").write_text(code)
    (site / f"{module}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    points = re.sub(r'project\.entry-points\."(.*)"', r"\1", entry).replace('"', "")
    (site / f"{module}-1.0.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(site)
    surveys.reader.cache_clear()

    quality = np.zeros(N, "i4")
    quality[BAD] = 2
    columns = {"WAVELENGTH": np.linspace(5000, 5100, N), "FLUX": flux(N), "SIGMA": np.full(N, 0.5), "QUALITY": quality}
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(Table(columns), name="SPECTRUM")])
    hdus[0].header.update(STARID=9007199254740993, RA=10.5, DEC=-20.25, TEFF=5750.0)
    hdus.writeto(files / "a.fits")
    (files / "b.fits").write_bytes((files / "a.fits").read_bytes()[:6000])
    hdus[0].header.remove("STARID")
    hdus.writeto(files / "c.fits")

    star, cut, nameless = [o for s in surveys.discover("mysurvey", files) for o in surveys.read("mysurvey", s)]
    surveys.reader.cache_clear()
    assert isinstance(star, Observation) and (star.object_id, star.ra, star.dec) == ("9007199254740993", 10.5, -20.25)
    assert star.arms[0].wavelength == pytest.approx(air_to_vacuum(columns["WAVELENGTH"])) and star.meta == {"teff": 5750.0}
    assert np.flatnonzero(star.arms[0].ivar != 4).tolist() == [BAD]
    assert isinstance(cut, Quarantined) and cut.object_id == "b" and "unreadable FITS file" in cut.reason
    assert isinstance(nameless, Quarantined) and "STARID" in nameless.reason
