"""Every reader on every layout it knows, sound and damaged, and on the files of every other survey."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from hpcspec.surveys import reader
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.grids import air_to_vacuum
from hpcspec.surveys.observation import Observation
from tests.surveys.layouts import BAD, GOOD, LAYOUTS

OWN_FORMAT = sorted({layout.survey for layout in LAYOUTS.values()})


def read_all(survey: str, folder: Path) -> list[Observation | Quarantined]:
    module = reader(survey)
    return [found for source in module.discover(folder) for found in module.read(source)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_sound_file_gives_its_objects(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    found = read_all(layout.survey, tmp_path)
    assert tuple(o.object_id for o in found) == layout.object_ids
    spectrum = found[0]
    assert isinstance(spectrum, Observation) and spectrum.survey == layout.survey
    arm = spectrum.arms[0]
    assert arm.wavelength[GOOD] == pytest.approx(layout.wavelength, rel=2e-7)
    assert arm.flux[GOOD] == pytest.approx(layout.flux) and arm.ivar[GOOD] == pytest.approx(layout.ivar, rel=1e-6)
    assert arm.ivar[BAD] == 0 and np.count_nonzero(arm.ivar[: GOOD + 20] == 0) == 1
    for arm in spectrum.arms:
        assert arm.flux.dtype == arm.ivar.dtype == np.float32 and arm.flux.dtype.isnative
        assert np.all(np.diff(arm.wavelength) > 0) and np.all(np.isfinite(arm.flux))
    starts = [arm.wavelength[0] for arm in spectrum.arms]
    assert starts == sorted(starts)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_gzipped_file_is_read_the_same(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    plain = read_all(layout.survey, tmp_path)
    for path in list(tmp_path.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = read_all(layout.survey, tmp_path)
    assert [o.object_id for o in packed] == [o.object_id for o in plain]
    for a, b in zip(plain, packed, strict=True):
        if isinstance(a, Observation):
            assert a.meta == b.meta and [x.grid for x in a.arms] == [x.grid for x in b.arms]
            assert all(np.array_equal(x.flux, y.flux) for x, y in zip(a.arms, b.arms, strict=True))


@pytest.mark.parametrize(("name", "survey"), [(n, s) for n in LAYOUTS for s in OWN_FORMAT if s != LAYOUTS[n].survey])
def test_another_surveys_file_is_never_read_as_its_own(name: str, survey: str, tmp_path: Path) -> None:
    LAYOUTS[name].write(tmp_path)
    found = read_all(survey, tmp_path)
    assert found and all(isinstance(o, Quarantined) and o.reason.startswith("not a") for o in found), found


def first_file(folder: Path) -> Path:
    return min(p for p in folder.iterdir() if not p.name.startswith("redrock"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def truncate_gzip(path: Path) -> None:
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed[: len(packed) * 2 // 3])


def flip_gzip(path: Path) -> None:
    packed = bytearray(gzip.compress(path.read_bytes()))
    packed[len(packed) // 2] ^= 16
    path.write_bytes(bytes(packed))


def change(path: Path, edit: Callable[[fits.HDUList], fits.HDUList | None]) -> None:
    with fits.open(path, memmap=False) as hdus:
        for hdu in hdus:
            _ = hdu.data
            hdu.header.pop("CHECKSUM", None), hdu.header.pop("DATASUM", None)
        hdus = edit(hdus) or hdus
        hdus.writeto(path, overwrite=True, output_verify="silentfix")


def fill(value: float, first: str, image: int) -> Callable[[Path], None]:
    """Sets every flux (or ivar) to a value, whatever the layout."""

    def edit(hdus: fits.HDUList) -> None:
        names = [h.name for h in hdus if h.name.endswith(f"_{first}")]
        if names:
            for name in names:
                hdus[name].data[:] = value
        elif any(isinstance(h, fits.BinTableHDU) and first in map(str.upper, h.columns.names) for h in hdus):
            table = hdus[1].data
            table[next(n for n in table.names if n.upper() == first)][:] = value
        elif hdus[0].data is not None and hdus[0].data.ndim == 2:
            hdus[0].data[image] = value
        elif hdus[0].data is not None:
            (hdus[0] if first == "FLUX" else next(h for h in hdus if h.name in ("INPUT_SIGMA", "RELATIVE_ERROR"))).data[:] = value
        else:
            hdus[1 + image].data[:] = value

    return lambda path: change(path, edit)


def no_extensions(path: Path) -> None:
    change(path, lambda hdus: fits.HDUList([fits.PrimaryHDU(hdus[0].data, hdus[0].header)]) if len(hdus) > 1 else hdus)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "truncated gzip": truncate_gzip,
    "flipped bit in gzip": flip_gzip,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("this is no FITS file\n" * 300),
    "zeros": lambda path: path.write_bytes(bytes(28800)),
    "flux all NaN": fill(np.nan, "FLUX", 0),
    "ivar all 0": fill(0, "IVAR", 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_damaged_file_is_quarantined_with_a_reason(name: str, damage: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    for path in [first_file(tmp_path)] if "all" not in damage else [p for p in tmp_path.iterdir() if "redrock" not in p.name]:
        DAMAGE[damage](path)
    found = read_all(layout.survey, tmp_path)
    assert found and all(isinstance(o, Quarantined) for o in found), found
    for row in found:
        assert row.reason and "\n" not in row.reason and Path(row.path).parent == tmp_path
    if layout.survey == "desi" and "all" in damage:
        assert tuple(row.object_id for row in found) == layout.object_ids


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n not in ("lamost_image", "lamost_dr1")])
def test_a_file_that_lost_its_extensions_is_quarantined(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    no_extensions(first_file(tmp_path))
    found = read_all(layout.survey, tmp_path)
    assert len(found) == 1 and isinstance(found[0], Quarantined) and found[0].reason.startswith("not a")


@pytest.mark.parametrize(
    ("name", "card", "says"),
    [
        ("lamost_image", "OBSID", None),
        ("lamost_image", "RA", "position"),
        ("lamost_dr1", "COEFF0", "COEFF0"),
        ("lamost_dr1", "PLANID", "PLANID"),
        ("galah_dr3", "CRVAL1", "CRVAL1"),
        ("galah_dr3", "MEANRA", "position"),
        ("apStar", "CRVAL1", "APOGEE"),
        ("apStar", "RA", "position"),
        ("apVisit", "DEC", "position"),
        ("sdss_bare", "PLATEID", "identifier"),
        ("sdss_bare", "PLUG_RA", "position"),
    ],
)
def test_a_missing_keyword_is_named(name: str, card: str, says: str | None, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    change(first_file(tmp_path), lambda hdus: hdus[0].header.remove(card))
    (found,) = read_all(layout.survey, tmp_path)
    if says is None:
        assert isinstance(found, Observation) and found.object_id == "58575-HD1_sp03-002"
    else:
        assert isinstance(found, Quarantined) and says in found.reason


@pytest.mark.parametrize(
    ("name", "hdu", "shape"),
    [
        ("galah_dr3", 1, (59,)),
        ("apStar", 2, (3, 8574)),
        ("apVisit", 4, (3, 63)),
        ("aspcapStar", 2, (8574,)),
        ("desi_coadd", 4, (3, 49)),
    ],
)
def test_arrays_that_do_not_fit_are_quarantined(name: str, hdu: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    layout.write(tmp_path)

    def cut(hdus: fits.HDUList) -> None:
        hdus[hdu].data = np.array(hdus[hdu].data[tuple(slice(n) for n in shape)])

    change(first_file(tmp_path), cut)
    found = read_all(layout.survey, tmp_path)
    assert [o.object_id for o in found] == list(layout.object_ids)
    assert all(isinstance(o, Quarantined) and ("differ" in o.reason or "are not" in o.reason) for o in found), found


def test_air_wavelength_of_the_sodium_line() -> None:
    assert air_to_vacuum(np.array([5889.951]))[0] == pytest.approx(5891.583, abs=2e-3)  # NIST: both wavelengths of Na I D2
