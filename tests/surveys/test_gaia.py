"""Gaia XP: every format of the archive gives the same objects; sampling agrees with the archive's and with gaiaxpy's own."""

from __future__ import annotations

import builtins
import gzip
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from hpcspec.errors import UserError
from hpcspec.surveys import gaia, xp
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.observation import Observation
from tests.surveys import gaia_layouts as layouts

IDS = [str(i) for i in (layouts.BOTH, layouts.RP_ONLY, layouts.FAINT)]


def read_all(folder: Path) -> list[Observation | Quarantined]:
    return [found for source in gaia.discover(folder) for found in gaia.read(source)]


def observations(folder: Path) -> list[Observation]:
    found = read_all(folder)
    assert all(isinstance(o, Observation) for o in found), found
    return found  # type: ignore[return-value]


@pytest.fixture()
def xp_matrices() -> None:
    with matplotlib.rc_context():
        pytest.importorskip("gaiaxpy", reason='sampling XP spectra needs gaiaxpy: pip install "hpcspec[gaia]"')


@pytest.fixture()
def without_gaiaxpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which gaiaxpy can't be imported."""
    real = builtins.__import__

    def refuse(name: str, *args, **kwargs):
        if name.split(".")[0] == "gaiaxpy":
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    xp._design.cache_clear()
    yield
    xp._design.cache_clear()


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_every_format_gives_the_coefficients(name: str, tmp_path: Path, without_gaiaxpy: None) -> None:
    rows = layouts.sources()
    layouts.LAYOUTS[name](rows, tmp_path / name)
    found = observations(tmp_path)
    assert [o.object_id for o in found] == IDS and all(o.survey == "gaia" and not o.arms for o in found)
    for one, row in zip(found, rows, strict=True):
        bands = ["rp"] if row["bp_coefficients"] is None else ["bp", "rp"]
        assert set(one.scalars) == {f"{b}_{i}" for b in bands for i in range(55)}
        for band in bands:
            values, errors = zip(*(one.scalars[f"{band}_{i}"] for i in range(55)), strict=True)
            assert values == pytest.approx(row[f"{band}_coefficients"], rel=1e-6)
            assert errors == pytest.approx(row[f"{band}_coefficient_errors"], rel=1e-6)
        if name != "xp_coefficients.fits":
            assert one.meta.get("bp_n_relevant_bases") == row["bp_n_relevant_bases"]
            assert one.meta["rp_n_relevant_bases"] == 20 and one.meta["solution_id"] == 4545469030156206080
    # HEALPix 12 centre of the first star, whose position is (217.39232, -62.67608)
    assert (found[0].ra, found[0].dec) == pytest.approx((217.392, -62.676), abs=0.015)
    assert found[0].meta["position"] == "healpix 12 centre"


@pytest.mark.parametrize("name", [n for n in layouts.LAYOUTS if n != "xp_coefficients.fits"])
def test_every_format_gives_the_same_spectrum_as_gaiaxpy(name: str, tmp_path: Path, xp_matrices: None, capfd) -> None:
    pandas = pytest.importorskip("pandas")
    with matplotlib.rc_context():  # importing it changes the settings of figures
        from gaiaxpy import calibrate

    rows = layouts.sources()
    layouts.LAYOUTS[name](rows, tmp_path / name)
    found = observations(tmp_path)
    assert capfd.readouterr() == ("", ""), "sampling must not print"
    frame, _ = calibrate(pandas.read_csv(layouts.to_csv([rows[0], rows[2]], tmp_path / "both.txt"), converters={
        f"{b}_{v}": lambda text: np.array(text[1:-1].split(","), float) for b in xp.BANDS for v in layouts.VECTORS}),
        save_file=False)  # fmt: skip
    for i, one in enumerate((found[0], found[2])):
        (arm,) = one.arms
        assert arm.name == "xp" and (arm.wavelength[0], arm.wavelength[-1], len(arm.flux)) == (3360, 10200, 343)
        scale = np.abs(frame.flux[i]).max()
        assert arm.flux == pytest.approx(xp.TO_FLAM * frame.flux[i], rel=1e-5, abs=1e-5 * xp.TO_FLAM * scale)
        assert arm.ivar**-0.5 == pytest.approx(xp.TO_FLAM * frame.flux_error[i], rel=1e-4)
    (rp,) = found[1].arms
    assert rp.wavelength[0] == 6360 and np.all(rp.ivar > 0)


def test_without_gaiaxpy_a_line_says_once_what_is_missing(tmp_path: Path, without_gaiaxpy: None, caplog) -> None:
    rows = layouts.sources()
    layouts.to_csv(rows, tmp_path / "a.csv")
    layouts.to_fits(rows, tmp_path / "b.fits")
    with caplog.at_level(logging.WARNING):
        assert len(observations(tmp_path)) == 6
    (record,) = caplog.records
    assert 'pip install "hpcspec[gaia]"' in record.getMessage()


def test_sampling_leaves_the_settings_of_figures_as_they_are(xp_matrices: None) -> None:
    program = "import matplotlib as m; from hpcspec.surveys import xp; before = dict(m.rcParams); assert xp._design(); " \
              "assert dict(m.rcParams) == before"  # fmt: skip
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("write", [layouts.to_csv, layouts.to_fits, layouts.to_votable, layouts.to_parquet])
def test_sampled_spectra_become_arms(write: Callable, tmp_path: Path) -> None:
    suffix = {"to_csv": "csv", "to_fits": "fits.gz", "to_votable": "vot", "to_parquet": "parquet"}[write.__name__]
    row = layouts.sampled()
    write([row, layouts.sampled(77)], tmp_path / f"XP_SAMPLED.{suffix}")
    first, second = observations(tmp_path)
    assert (first.object_id, second.object_id) == (str(layouts.BOTH), "77")
    (arm,) = first.arms
    assert (first.ra, first.dec, first.meta["position"]) == (217.4, -62.7, "object")
    assert arm.wavelength[[0, 1, -1]] == pytest.approx([3360, 3380, 10200])
    # 1e-16 W / (m2 nm) is 1e-14 erg / (s cm2 Å)
    assert arm.flux == pytest.approx(row["flux"] * 1e19, rel=1e-6)
    assert arm.ivar[100] == 0 and np.delete(arm.ivar, 100) == pytest.approx(1 / 40**2, rel=1e-6)


def test_a_file_that_is_one_spectrum(tmp_path: Path) -> None:
    row = layouts.sampled()
    samples = [{"wavelength": 336.0 + 2 * i, "flux": f, "flux_error": e}
               for i, (f, e) in enumerate(zip(row["flux"], row["flux_error"], strict=True))]  # fmt: skip
    layouts.to_csv(samples, tmp_path / f"XP_SAMPLED-Gaia DR3 {layouts.BOTH}.csv")
    (one,) = observations(tmp_path)
    assert one.object_id == str(layouts.BOTH) and one.arms[0].grid == xp.GRID and one.meta["position"] == "healpix 12 centre"
    assert one.arms[0].flux == pytest.approx(row["flux"] * 1e19, rel=1e-6)


BESIDE = {
    "gaia_source.csv": layouts.to_csv,
    "GaiaSource_000000-003111.csv.gz": layouts.to_bulk,
    "gaia_source.fits": layouts.to_fits,
    "gaia_source-result.vot": layouts.to_votable,
    "gaia_source.parquet": layouts.to_parquet,
}


@pytest.mark.parametrize(("name", "write"), BESIDE.items())
def test_tables_beside_are_joined_by_source_id(name: str, write: Callable, tmp_path: Path, without_gaiaxpy: None) -> None:
    rows = layouts.sources()
    layouts.to_bulk(rows, tmp_path / "XpContinuousMeanSpectrum_000000-003111.csv.gz")
    write(layouts.photometry(rows), tmp_path / name)
    layouts.to_csv([{"source_id": rows[0]["source_id"], "ra": 1.0, "parallax": 9.0}], tmp_path / "GaiaSource_003112-005263.csv")
    spectra = next(s for s in gaia.discover(tmp_path) if s.paths[0].name.startswith("Xp"))
    assert [p.name for p in spectra.paths[1:]] == [name]
    first, second, third = gaia.read(spectra)
    assert isinstance(first, Observation) and isinstance(second, Observation) and isinstance(third, Observation)
    assert [(o.ra, o.dec, o.meta["position"]) for o in (first, second, third)] == [(10 + i, -5, "object") for i in range(3)]
    assert second.scalars["phot_g_mean_mag"] == pytest.approx((15.0, 1.0857362 / 500))
    assert second.scalars["phot_bp_mean_mag"] == pytest.approx((14.5, 1.0857362 / 100))
    assert second.scalars["parallax"] == (2.5, 0.05) and second.scalars["teff_gspphot"] == (5000.0, 30.0)
    assert second.scalars["j_m"] == (12.0, 0.02) and second.scalars["w1mpro"] == (11.0, 0.03)
    assert "ruwe" not in second.scalars and np.isnan(second.scalars["bp_rp"][1])
    assert second.meta["teff_gspphot"] == 5000.0 and second.meta["teff_gspphot_error"] == 30.0
    assert gaia.LABELS >= {"teff_gspphot", "logg_gspphot", "mh_gspphot"}


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path, without_gaiaxpy: None) -> None:
    rows = layouts.sources()
    for name, own in (("XpContinuousMeanSpectrum_0.csv", rows), ("gaia_source.csv", layouts.photometry(rows))):
        path = layouts.to_csv(own, tmp_path / name)
        plain = observations(tmp_path)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        marked = observations(tmp_path)
        assert list(map(repr, marked)) == list(map(repr, plain))


def test_without_xp_files_the_catalogue_is_the_objects(tmp_path: Path) -> None:
    layouts.to_csv(layouts.photometry(layouts.sources()), tmp_path / "gaia_source.csv")
    layouts.to_csv([{"source_id": layouts.BOTH, "ag_gspphot": 0.3}], tmp_path / "astrophysical_parameters.csv")
    (source,) = gaia.discover(tmp_path)
    found = list(gaia.read(source))
    assert [o.object_id for o in found] == IDS[::-1]
    assert isinstance(found[2], Observation) and found[2].scalars["ag_gspphot"][0] == 0.3
    assert found[2].meta["has_xp_continuous"] == "True" and found[2].meta["designation"] == f"Gaia DR3 {layouts.BOTH}"


def test_a_damaged_table_beside_is_named_and_the_objects_come_without_it(tmp_path: Path, without_gaiaxpy: None) -> None:
    layouts.to_csv(layouts.sources(), tmp_path / "xp.csv")
    (tmp_path / "gaia_source.fits").write_bytes(b"SIMPLE  = no")
    table, *objects = read_all(tmp_path)
    assert isinstance(table, Quarantined) and table.path.endswith("gaia_source.fits") and "xp.csv" in table.reason
    assert [o.object_id for o in objects] == IDS and all(isinstance(o, Observation) for o in objects)


def test_a_table_beside_that_lost_an_identifier_joins_the_right_rows(tmp_path: Path, without_gaiaxpy: None) -> None:
    """With one of them missing, identifiers must not become floats, in which these two sources are the same."""
    rows = [{**layouts.sources()[0], "source_id": layouts.BOTH + i} for i in (0, 1)]
    layouts.to_csv(rows, tmp_path / "xp.csv")
    layouts.to_csv([{"source_id": i, "parallax": 2.5} for i in (layouts.BOTH, "")], tmp_path / "gaia_source.csv")
    known, other = read_all(tmp_path)
    assert isinstance(known, Observation) and isinstance(other, Observation)
    assert known.scalars["parallax"][0] == 2.5 and "parallax" not in other.scalars
    (tmp_path / "gaia_source.csv").unlink()
    layouts.to_fits([{"source_id": float(layouts.BOTH), "parallax": 2.5}], tmp_path / "gaia_source.fits")
    told, *both = read_all(tmp_path)
    assert isinstance(told, Quarantined) and "floating-point" in told.reason
    assert all(isinstance(o, Observation) and "parallax" not in o.scalars for o in both)


CELLS = {
    "correlations cut": ("bp_coefficient_correlations", "(0.1,0.2)", "2 values where 1485 belong"),
    "coefficients cut": ("bp_coefficients", "(" + ",".join(["1.5"] * 54) + ")", "54 values where 55 belong"),
    "an ellipsis": ("rp_coefficients", "[1.0 2.0 ... 3.0]", "rp_coefficients: '1.0 2.0 ... 3.0' is not a number"),
    "not a number": ("rp_coefficients", "(" + ",".join(["1.5"] * 54 + ["NaN"]) + ")", "not all of the 55 are numbers"),
    "through a float": ("source_id", "5.853498713190526E18", "is not one of Gaia's 64-bit integers"),
    "no identifier": ("source_id", "", "is not one of Gaia's 64-bit integers"),
    "beyond the sky": ("source_id", "9223372036854775807", "is not one of Gaia's 64-bit integers"),
}


@pytest.mark.parametrize("damage", CELLS)
def test_a_damaged_row_costs_that_row(damage: str, tmp_path: Path, without_gaiaxpy: None) -> None:
    column, cell, reason = CELLS[damage]
    rows = layouts.sources()
    rows[0][column] = cell
    layouts.to_csv(rows, tmp_path / "xp.csv")
    bad, *rest = read_all(tmp_path)
    assert isinstance(bad, Quarantined) and reason in bad.reason
    assert bad.object_id == ("" if column == "source_id" else IDS[0])
    assert [o.object_id for o in rest] == IDS[1:] and all(isinstance(o, Observation) for o in rest)


@pytest.mark.parametrize("cut", ["comma", "quote", "end"])
def test_a_damaged_line_costs_that_line(cut: str, tmp_path: Path, without_gaiaxpy: None) -> None:
    path = layouts.to_csv(layouts.sources(), tmp_path / "xp.csv")
    lines = path.read_text().split("\n")
    line = 3 if cut == "end" else 1
    lines[line] = {"comma": lines[line].replace(",", ";", 1), "quote": lines[line].replace('"', "", 1),
                   "end": lines[line][: len(lines[line]) // 2]}[cut]  # fmt: skip
    path.write_text("\n".join(lines[:4]))
    found = read_all(tmp_path)
    assert len(found) == 3 and [isinstance(o, Quarantined) for o in found] == [i == line - 1 for i in range(3)]
    assert f"line {line + 1}:" in found[line - 1].reason and cut == "comma" or found[line - 1].object_id == IDS[line - 1]


@pytest.mark.parametrize("name", layouts.LAYOUTS)
@pytest.mark.parametrize("damage", ["empty", "cut", "cut gzip", "flip gzip", "noise"])
def test_a_damaged_file_never_crashes(name: str, damage: str, tmp_path: Path, without_gaiaxpy: None) -> None:
    path = layouts.LAYOUTS[name](layouts.sources(), tmp_path / name)
    data = path.read_bytes()
    packed = bytearray(data if path.suffix == ".gz" else gzip.compress(data))
    flipped = packed.copy()
    flipped[len(packed) // 2] ^= 16
    path.write_bytes({"empty": b"", "cut": data[: len(data) * 2 // 3], "cut gzip": bytes(packed[: len(packed) * 2 // 3]),
                      "flip gzip": bytes(flipped), "noise": np.random.default_rng(0).bytes(5000)}[damage])  # fmt: skip
    found = read_all(tmp_path)
    good = [o.object_id for o in found if isinstance(o, Observation)]
    assert len(good) < len(found) and all(o.reason for o in found if isinstance(o, Quarantined))
    assert good == IDS[: len(good)] and ("gzip" not in damage or not good)


def test_other_tables_are_never_read_as_gaias(tmp_path: Path) -> None:
    layouts.to_csv([{"source_id": 1, "teff": 5000}], tmp_path / "labels.csv")
    layouts.to_csv([{"name": "a", "flux": 3}], tmp_path / "other.csv")
    found = read_all(tmp_path)
    assert len(found) == 2 and all(isinstance(o, Quarantined) and o.reason.startswith("not a Gaia") for o in found)


def test_a_folder_without_tables_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--input"):
        gaia.discover(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        gaia.discover(tmp_path / "nowhere")


def test_real_continuous_spectra_agree_with_the_archives_samples(real_data: Path, xp_matrices: None) -> None:
    folder = real_data / "gaia_xp/gaiaxpy"
    if not folder.is_dir():
        pytest.skip(f"no gaia_xp/gaiaxpy in {real_data}")
    found = {s.key: list(gaia.read(s)) for s in gaia.discover(folder)}
    for suffix in ("csv", "ecsv", "fits", "xml"):
        for mine, archive in zip(found[f"XP_CONTINUOUS_RAW.{suffix}"], found["XP_SAMPLED_RAW_dr3int6.csv"], strict=True):
            assert isinstance(mine, Observation) and isinstance(archive, Observation)
            assert (mine.ra, mine.dec) == pytest.approx((archive.ra, archive.dec), abs=0.015)
            a, b = mine.arms[0], archive.arms[0]
            assert a.grid == b.grid and len(a.flux) == len(b.flux) == 343
            assert np.abs(a.flux - b.flux).max() < 0.01 * b.ivar.min() ** -0.5
            assert np.median(np.abs((a.flux - b.flux) * np.sqrt(b.ivar))) < 5e-4
            assert a.ivar == pytest.approx(b.ivar, rel=1e-4)
    both, rp, again = found["XP_CONTINUOUS_RAW_with_missing_BP.csv"]
    assert isinstance(rp, Observation) and len(rp.scalars) == 55 and rp.arms[0].wavelength[0] == 6360
    assert all(isinstance(o, Quarantined) and "307 fluxes" in o.reason for o in found["XP_SPECTRA_RAW_mini.csv"])


def test_real_packed_coefficients(real_data: Path) -> None:
    path = real_data / "gaia_xp/xp_continuous_combined_chunk0.fits.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {real_data}/gaia_xp")
    (source,) = [s for s in gaia.discover(path.parent) if s.paths[0] == path]
    found = list(gaia.read(source))
    assert len({o.object_id for o in found}) == len(found) == 2000
    assert all(isinstance(o, Observation) and len(o.scalars) == 110 and not o.arms for o in found)
