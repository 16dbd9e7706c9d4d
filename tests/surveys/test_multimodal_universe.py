"""Multimodal Universe tables in HDF5, HATS and plain Parquet: the same objects from all, and what happens to bad ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import hats
import hdf5plugin
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from nested_pandas import NestedFrame

from hpcspec.errors import UserError
from hpcspec.surveys import discover, labels, read, reader
from hpcspec.surveys.base import FLAM, Quarantined, Source
from hpcspec.surveys.galah import CAMERAS
from hpcspec.surveys.grids import air_to_vacuum
from hpcspec.surveys.observation import Observation
from tests.surveys import mmu_layouts
from tests.surveys.layouts import LAYOUTS
from tests.surveys.mmu_layouts import APOGEE_CROP, BAD, GALAH_ARMS, TABLES, Table, arrow, write_hats, write_hdf5


def read_all(survey: str, folder: Path) -> list[Observation | Quarantined]:
    return [one for source in discover(survey, folder) for one in read(survey, source)]


def good(survey: str, folder: Path) -> list[Observation]:
    found = read_all(survey, folder)
    assert all(isinstance(one, Observation) for one in found), found
    return [one for one in found if isinstance(one, Observation)]


def bad(survey: str, folder: Path) -> list[Quarantined]:
    found = read_all(survey, folder)
    assert found and all(isinstance(one, Quarantined) for one in found), found
    return [one for one in found if isinstance(one, Quarantined)]


def assert_same(a: Observation, b: Observation, without: tuple[str, ...] = ()) -> None:
    assert (a.object_id, a.survey, a.ra, a.dec) == (b.object_id, b.survey, b.ra, b.dec)
    assert (a.flux_unit, a.frame) == (b.flux_unit, b.frame)
    assert {k: v for k, v in a.meta.items() if k not in without} == {k: v for k, v in b.meta.items() if k not in without}
    np.testing.assert_equal(dict(a.scalars), dict(b.scalars))
    assert [(x.name, x.grid, x.first) for x in a.arms] == [(x.name, x.grid, x.first) for x in b.arms]
    for x, y in zip(a.arms, b.arms, strict=True):
        assert np.array_equal(x.flux, y.flux) and np.array_equal(x.ivar, y.ivar)


def test_sdss_padding_is_dropped_and_the_mask_folded_in(tmp_path: Path) -> None:
    table = mmu_layouts.sdss()
    write_hdf5(tmp_path, table)
    first, second, last = good("sdss", tmp_path)
    assert [one.object_id for one in (first, second, last)] == [str(299489676975171584 + i) for i in range(3)]
    (arm,) = first.arms
    assert (arm.name, arm.grid.kind, arm.grid.start, arm.grid.step, arm.first) == ("coadd", "log10", 0, 1e-4, 35800)
    assert arm.flux.dtype == arm.ivar.dtype == np.float32 and arm.flux.dtype.isnative
    np.testing.assert_array_equal(arm.flux, table["spectrum_flux"][0])
    assert np.flatnonzero(arm.ivar == 0).tolist() == [BAD, BAD + 1] and arm.ivar.max() == 4
    assert len(last.arms[0].flux) == 380 and last.arms[0].grid is not arm.grid and last.arms[0].grid == arm.grid
    assert first.meta["class"] == "GALAXY" and second.meta["class"] == "STAR" and second.meta["zwarning"] == 4
    assert first.meta["z"] == pytest.approx(0.1) and first.meta["plate"] == 266 and first.flux_unit == FLAM
    assert first.ra == 10 and first.dec == -5, "not the plugged position, which is 0 here"


def test_desi_is_one_arm_on_its_common_grid_and_zwarn_keeps_its_sense(tmp_path: Path) -> None:
    write_hdf5(tmp_path, mmu_layouts.desi(), "dr1_main")
    found = good("desi", tmp_path)
    (arm,) = found[0].arms
    assert (arm.grid.kind, arm.grid.start, arm.grid.step, arm.first, len(arm.flux)) == ("linear", 3600, 0.8, 0, 7781)
    assert arm.wavelength[-1] == 9824 and np.flatnonzero(arm.ivar == 0).tolist() == [BAD, BAD + 1], "the mask, and an inf"
    assert [one.meta["zwarn"] for one in found] == [0, 0, 4] and found[2].meta["class"] == "QSO"
    assert [one.object_id for one in found] == [str(39627652591521181 + 7 * i) for i in range(3)]


def test_desi_early_files_have_the_ends_of_the_wavelengths_only(tmp_path: Path) -> None:
    table = mmu_layouts.desi(2)
    whole = table.pop("spectrum_lambda")
    del table["spectrum_mask"]
    table |= {"spectrum_lambda_min": whole[:, 0], "spectrum_lambda_max": whole[:, -1]}
    write_hdf5(tmp_path, table)
    (arm,) = good("desi", tmp_path)[0].arms
    assert (arm.grid.kind, arm.first, arm.wavelength[-1]) == ("linear", 0, 9824)
    assert np.flatnonzero(arm.ivar == 0).tolist() == [BAD + 1]


def test_apogee_is_put_back_on_its_grid_chip_by_chip(tmp_path: Path) -> None:
    table = mmu_layouts.apogee()
    write_hdf5(tmp_path, table)
    first, _, last = good("apogee", tmp_path)
    chips = [("blue", 246, 3028), ("green", 3585, 2495), ("red", 6344, 1991)]
    assert [(arm.name, arm.first, len(arm.flux)) for arm in first.arms] == chips
    exact = 10 ** (4.179 + 6e-6 * APOGEE_CROP)
    np.testing.assert_allclose(np.concatenate([a.wavelength for a in first.arms]), exact, rtol=1e-12)
    np.testing.assert_array_equal(np.concatenate([a.flux for a in first.arms]), table["spectrum_flux"][0])
    masked = np.flatnonzero(np.concatenate([a.ivar for a in first.arms]) == 0)
    assert masked.tolist() == [BAD, BAD + 1, BAD + 2, BAD + 3], "the mask, an inf, a flux of 0, an error of 1e10"
    assert first.frame == "rest" and first.meta["teff"] == 4000 and first.meta["gaia_id"] == 2874651391586452224
    assert "teff" not in last.meta and last.meta["logg"] == 2.5, "-9999 is no temperature"


def test_apogee_bitmask_of_early_files_is_the_surveys_own(tmp_path: Path) -> None:
    table = mmu_layouts.apogee(1)
    bits = np.zeros(table.pop("spectrum_mask").shape, np.int16)
    bits[:, 20], bits[:, 21], bits[:, 22] = 1 << 0, 1 << 12, 1 << 14  # bad, a sky line (a warning), not enough PSF
    write_hdf5(tmp_path, table | {"spectrum_bitmask": bits})
    ivar = good("apogee", tmp_path)[0].arms[0].ivar
    assert (ivar[20], ivar[21], ivar[22]) == (0, 4, 0)


def test_galah_ccds_stay_apart_and_are_moved_to_where_they_belong(tmp_path: Path) -> None:
    table = mmu_layouts.galah()
    write_hdf5(tmp_path, table, "dr3")
    first, _, last = good("galah", tmp_path)
    assert [arm.name for arm in first.arms] == list(GALAH_ARMS)
    for arm, (start, step, length) in zip(first.arms, GALAH_ARMS.values(), strict=True):
        np.testing.assert_allclose(arm.wavelength, air_to_vacuum(start + step * np.arange(length)), atol=3e-4)
    np.testing.assert_array_equal(np.concatenate([a.flux for a in first.arms]), table["spectrum_flux"][0])
    assert np.flatnonzero(first.arms[0].ivar == 0).tolist() == [BAD], "an error of 0 gave inf"
    assert len(last.arms[3].flux) == 279 and np.all(last.arms[3].ivar > 0), "padding dropped"
    assert first.object_id == "140310002101001" and first.flux_unit == "counts"
    assert first.meta["teff_err"] == 90 and "fe_h" not in last.meta and "fe_h" in first.meta and "position" in first.meta


def test_gaia_rows_are_those_of_its_own_reader(tmp_path: Path) -> None:
    table = mmu_layouts.gaia()
    write_hdf5(tmp_path, table)
    first, second, last = good("gaia", tmp_path)
    assert second.object_id == str(4295806720 + 5764607523034234880 + 1), "64 bits, which a float would round"
    assert first.scalars["bp_0"] == (table["coeff"][0, 0], 0.5) and first.scalars["rp_54"] == (table["coeff"][0, 109], 0.5)
    assert first.scalars["parallax"] == pytest.approx((2.5, 0.02)) and "parallax" not in last.scalars
    assert first.scalars["phot_g_mean_mag"] == pytest.approx((15, 2.5 / np.log(10) / 100))
    assert first.meta["teff_gspphot"] == 5700 and not first.arms


def test_gaia_in_hats_has_the_identifier_as_object_id(tmp_path: Path) -> None:
    table = mmu_layouts.gaia()
    write_hdf5(tmp_path / "a", table)
    table["object_id"] = table.pop("source_id")
    write_hats(tmp_path / "b" / "mmu_gaia", arrow(table))
    for a, b in zip(good("gaia", tmp_path / "a"), good("gaia", tmp_path / "b"), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("style", ["struct", "structs", "dotted", "flat"])
@pytest.mark.parametrize("survey", TABLES)
def test_parquet_gives_the_objects_of_hdf5(survey: str, style: str, tmp_path: Path) -> None:
    table = TABLES[survey](5)
    write_hdf5(tmp_path / "a", table)
    write_hats(tmp_path / "b" / "mmu", arrow(table, style), row_group_size=2)
    found = good(survey, tmp_path / "b")
    assert len(found) == 5
    for a, b in zip(good(survey, tmp_path / "a"), found, strict=True):
        assert_same(a, b, ("zwarn", "zwarning"))
        assert all(b.meta[name] == int(a.meta[name] != 0) for name in ("zwarn", "zwarning") if name in a.meta)


def test_text_of_bytes_and_inverted_flags_are_put_right(tmp_path: Path) -> None:
    table = arrow(mmu_layouts.sdss(), "struct").drop_columns(["SPECOBJID"])
    ids = [str(text.encode()) for text in table["object_id"].to_pylist()]
    table = table.set_column(table.column_names.index("object_id"), "object_id", pa.array(ids))
    write_hats(tmp_path / "hats", table)
    loader = table.replace_schema_metadata({b"huggingface": b"{}"})
    (tmp_path / "datasets").mkdir()
    pq.write_table(loader, tmp_path / "datasets" / "train-00000-of-00001.parquet")
    assert ids[0].startswith("b'")
    assert [one.object_id for one in good("sdss", tmp_path / "hats")] == [str(299489676975171584 + i) for i in range(3)]
    assert [one.meta["zwarning"] for one in good("sdss", tmp_path / "hats")] == [0, 1, 1], "True warns"
    assert [one.meta["zwarning"] for one in good("sdss", tmp_path / "datasets")] == [1, 0, 0], "the loaders inverted it"


def test_groups_of_the_loaders_are_taken_apart(tmp_path: Path) -> None:
    flat = arrow(mmu_layouts.galah(), "structs")
    index = [name for name in flat.column_names if name.startswith("spectrum_") and "_ind_" in name]
    short = [name.removeprefix("spectrum_").replace("_ind", "") for name in index]  # B_start
    grouped = pa.StructArray.from_arrays([flat[name].combine_chunks() for name in index], short)
    nested = flat.drop_columns(index).append_column("filter_indices", grouped)
    write_hats(tmp_path / "a" / "mmu", flat)
    write_hats(tmp_path / "b" / "mmu", nested)
    for a, b in zip(good("galah", tmp_path / "a"), good("galah", tmp_path / "b"), strict=True):
        assert_same(a, b)


def test_a_catalogue_that_hats_itself_opens(tmp_path: Path) -> None:
    """Spectra nested by nested-pandas, a catalogue in hats' own properties; its margin repeats an object and is left out."""
    table = mmu_layouts.sdss(4)
    frame = NestedFrame({n: [x.decode() for x in v] if v.dtype.kind == "S" else v.astype(v.dtype.newbyteorder("="))
                         for n, v in table.items() if v.ndim == 1})  # fmt: skip
    pixels = {"lambda": "spectrum_lambda", "flux": "spectrum_flux", "ivar": "spectrum_ivar", "mask": "spectrum_mask"}
    values = {ours: table[theirs].astype(table[theirs].dtype.newbyteorder("=")).reshape(-1) for ours, theirs in pixels.items()}
    frame = frame.join_nested(pd.DataFrame(values, index=np.repeat(np.arange(4), 400)), "spectrum")
    catalogue = tmp_path / "collection" / "mmu_sdss"
    path = write_hats(catalogue, arrow(table))
    frame.to_parquet(path)
    pq.write_metadata(pq.read_schema(path), catalogue / "dataset" / "_common_metadata")
    write_hats(tmp_path / "collection" / "mmu_sdss_10arcs", arrow({n: v[:1] for n, v in table.items()}), "margin")
    opened = hats.read_hats(catalogue)
    assert opened.catalog_info.total_rows == 4 and len(opened.get_healpix_pixels()) == 1
    (source,) = discover("sdss", tmp_path)
    assert source.key == "collection/mmu_sdss/dataset/Norder=0/Dir=0/Npix=4.parquet"
    write_hdf5(tmp_path / "hdf5", table)
    for a, b in zip(good("sdss", tmp_path / "hdf5"), read("sdss", source), strict=True):
        assert isinstance(b, Observation)
        assert_same(a, b)


def test_variable_length_half_precision_and_compression(tmp_path: Path) -> None:
    table = mmu_layouts.sdss()
    write_hdf5(tmp_path / "plain", table)
    plain = good("sdss", tmp_path / "plain")
    mmu_layouts.write_variable_length(tmp_path / "vlen", table)
    write_hdf5(tmp_path / "zstd", table, chunks=True, **hdf5plugin.Blosc2(cname="zstd"))
    for folder in ("vlen", "zstd"):
        for a, b in zip(plain, good("sdss", tmp_path / folder), strict=True):
            assert_same(a, b)
    write_hdf5(tmp_path / "half", table | {n: table[n].astype(np.float16) for n in ("spectrum_flux", "spectrum_ivar")})
    for a, b in zip(plain, good("sdss", tmp_path / "half"), strict=True):
        np.testing.assert_allclose(b.arms[0].flux, a.arms[0].flux, rtol=1e-3)


def test_more_rows_than_are_read_at_once(tmp_path: Path) -> None:
    table = mmu_layouts.gaia(600)
    write_hdf5(tmp_path / "a", table)
    write_hats(tmp_path / "b" / "mmu", arrow(table), row_group_size=500)
    for folder in ("a", "b"):
        assert [one.object_id for one in good("gaia", tmp_path / folder)] == table["source_id"].astype(str).tolist()


def without(table: Table, *names: str) -> Table:
    return {name: values for name, values in table.items() if name not in names}


def test_an_identifier_that_was_a_float_is_refused(tmp_path: Path) -> None:
    table = mmu_layouts.desi(1)
    write_hdf5(tmp_path, without(table, "TARGETID") | {"object_id": table["object_id"].astype(np.float64)})
    (row,) = bad("desi", tmp_path)
    assert "object_id is a floating-point number" in row.reason


def test_a_bad_row_costs_itself_alone(tmp_path: Path) -> None:
    sdss = mmu_layouts.sdss(5)
    sdss["spectrum_lambda"][0] = -1
    sdss["spectrum_flux"][1] = np.nan
    sdss["dec"][2] = 95
    sdss["spectrum_lambda"][3, :10] = sdss["spectrum_lambda"][3, 9::-1]
    write_hdf5(tmp_path / "sdss", sdss)
    found = read_all("sdss", tmp_path / "sdss")
    assert [one.object_id for one in found] == [str(299489676975171584 + i) for i in range(5)]
    reasons = ("no pixel has a wavelength", "no valid pixel", "off the sky", "not finite, positive and increasing")
    for one, reason in zip(found[:4], reasons, strict=True):
        assert isinstance(one, Quarantined) and reason in one.reason
    assert isinstance(found[4], Observation)

    galah = mmu_layouts.galah(3)
    galah["spectrum_G_ind_start"][0] = 9999
    galah["spectrum_lambda"][1, 5] += 0.1
    write_hdf5(tmp_path / "galah", galah)
    found = read_all("galah", tmp_path / "galah")
    assert "the CCDs start at pixels [0, 9999" in found[0].reason and "arm B: wavelengths are not evenly" in found[1].reason
    assert isinstance(found[2], Observation)

    desi = mmu_layouts.desi(2)
    desi["OBJTYPE"] = np.array([b"SKY", b"TGT"])
    write_hdf5(tmp_path / "desi", desi)
    sky, target = read_all("desi", tmp_path / "desi")
    assert sky == Quarantined(sky.path, "39627652591521181", "sky fibre") and isinstance(target, Observation)


@pytest.mark.parametrize("folder", ["hdf5", "hats"])
@pytest.mark.parametrize(("survey", "other"), [(s, o) for s in TABLES for o in TABLES if s != o])
def test_another_surveys_table_is_never_read_as_its_own(survey: str, other: str, folder: str, tmp_path: Path) -> None:
    table = TABLES[other](1)
    write_hdf5(tmp_path, table) if folder == "hdf5" else write_hats(tmp_path / "mmu", arrow(table))
    (row,) = bad(survey, tmp_path)
    assert row.reason.startswith("not a")


@pytest.mark.parametrize(
    ("damage", "reason"), [("empty", "empty file"), ("garbage", "file signature not found"), ("truncated", "truncated")]
)
def test_a_damaged_hdf5_file_is_one_quarantined_row(damage: str, reason: str, tmp_path: Path) -> None:
    path = write_hdf5(tmp_path, mmu_layouts.sdss())
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "garbage": b"x" * 5000, "truncated": whole[: len(whole) // 2]}[damage])
    (row,) = bad("sdss", tmp_path)
    assert row.path == str(path) and reason in row.reason


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
def test_a_damaged_parquet_file_is_one_quarantined_row(damage: str, tmp_path: Path) -> None:
    path = write_hats(tmp_path / "mmu", arrow(mmu_layouts.sdss()))
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "garbage": b"x" * 5000, "truncated": whole[: len(whole) // 2]}[damage])
    (row,) = bad("sdss", tmp_path)
    assert row.path == str(path) and row.reason


def test_columns_of_different_length_are_no_table(tmp_path: Path) -> None:
    table = mmu_layouts.sdss(3)
    write_hdf5(tmp_path, table | {"ra": table["ra"][:2]})
    (row,) = bad("sdss", tmp_path)
    assert row.reason == "columns differ in length: ra not 3 rows"


@pytest.mark.parametrize("chunks", [None, (1, 100), (2, 400), (3, 400)])
def test_spectra_of_which_a_part_was_never_written_are_refused(chunks: tuple[int, int] | None, tmp_path: Path) -> None:
    table = mmu_layouts.sdss(3)
    path = write_hdf5(tmp_path, without(table, "spectrum_flux"))
    with h5py.File(path, "a") as file:
        column = file.create_dataset("spectrum_flux", (3, 400), "f4", chunks=chunks, fillvalue=1.0)
        if chunks and chunks[0] < 3:
            column[0] = table["spectrum_flux"][0]
    (row,) = bad("sdss", tmp_path)
    assert row.reason == "not all of the 3 rows were written: spectrum_flux"
    with h5py.File(path, "a") as file:
        file["spectrum_flux"][:] = table["spectrum_flux"]
    assert len(good("sdss", tmp_path)) == 3


@pytest.mark.parametrize("where", ["external storage", "external link", "soft link", "virtual"])
def test_spectra_that_are_not_in_the_file_itself_are_refused(where: str, tmp_path: Path) -> None:
    table = mmu_layouts.sdss(3)
    whole = write_hdf5(tmp_path / "other", table)
    path = write_hdf5(tmp_path / "files", without(table, "spectrum_flux"))
    raw = tmp_path / "flux.raw"
    raw.write_bytes(table["spectrum_flux"].tobytes())
    with h5py.File(path, "a") as file:
        if where == "external storage":
            file.create_dataset("spectrum_flux", (3, 400), ">f4", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])
        elif where == "virtual":
            layout = h5py.VirtualLayout((3, 400), ">f4")
            layout[:] = h5py.VirtualSource(whole, "spectrum_flux", (3, 400))
            file.create_virtual_dataset("spectrum_flux", layout)
        else:
            file["beside"] = h5py.ExternalLink(str(whole), "/")
            other = h5py.ExternalLink(str(whole), "/spectrum_flux")
            file["spectrum_flux"] = other if where == "external link" else h5py.SoftLink("/beside/spectrum_flux")
        assert np.array_equal(file["spectrum_flux"][:], table["spectrum_flux"]), "HDF5 itself reads it"
    (row,) = bad("sdss", tmp_path / "files")
    kept = "are links to data elsewhere" if "link" in where else "are kept in other files"
    assert row.reason == f"columns {kept}: spectrum_flux"


def test_every_row_ends_as_one_item(tmp_path: Path) -> None:
    """Warnings that are lists, where the loaders' boolean belongs, lose no row."""
    table = arrow(mmu_layouts.sdss(4))
    lists = pa.array([[True, False]] * 4)
    table = table.set_column(table.column_names.index("ZWARNING"), "ZWARNING", lists)
    (tmp_path / "files").mkdir()
    pq.write_table(table.replace_schema_metadata({b"huggingface": b"{}"}), tmp_path / "files" / "train.parquet")
    assert [one.object_id[-2:] for one in read_all("sdss", tmp_path / "files")] == ["84", "85", "86", "87"]


def test_a_damaged_chunk_costs_its_rows(tmp_path: Path) -> None:
    table = mmu_layouts.sdss(6)
    path = write_hdf5(tmp_path, without(table, "spectrum_flux"))
    with h5py.File(path, "a") as file:
        column = file.create_dataset("spectrum_flux", data=table["spectrum_flux"], chunks=(2, 400), fletcher32=True)
        where = column.id.get_chunk_info(1).byte_offset
    with path.open("r+b") as raw:
        raw.seek(where + 40)
        raw.write(b"\xff\x00\xff")
    found = read_all("sdss", tmp_path)
    assert [one.object_id for one in found] == [str(299489676975171584 + i) for i in range(6)]
    lost = [one for one in found if isinstance(one, Quarantined)]
    assert [one.object_id[-1] for one in lost] == ["6", "7"] and lost[0].reason.startswith("row 2: ")


def test_a_damaged_row_group_costs_its_rows(tmp_path: Path) -> None:
    options = {"row_group_size": 2, "write_page_checksum": True, "compression": "none", "use_dictionary": False}
    path = write_hats(tmp_path / "mmu", arrow(mmu_layouts.sdss(6)), **options)
    group = pq.ParquetFile(path).metadata.row_group(1)
    column = next(c for i in range(group.num_columns) if (c := group.column(i)).path_in_schema.startswith("spectrum.flux"))
    with path.open("r+b") as raw:
        raw.seek(column.data_page_offset + column.total_compressed_size // 2)
        raw.write(b"\xff\x00\xff\x00")
    found = read_all("sdss", tmp_path)
    assert [one.object_id for one in found] == [str(299489676975171584 + i) for i in range(6)]
    lost = [one for one in found if isinstance(one, Quarantined)]
    assert [one.object_id[-1] for one in lost] == ["6", "7"] and lost[0].reason.startswith("row 2: ")


def test_what_is_in_the_folder_chooses_the_reader(tmp_path: Path) -> None:
    native, shared = tmp_path / "native", tmp_path / "shared"
    native.mkdir()
    layout = next(one for one in LAYOUTS.values() if one.survey == "sdss")
    layout.write(native)
    pq.write_table(pa.table({"object_id": ["1"], "z": [0.5]}), native / "labels.parquet")
    assert discover("sdss", native) == reader("sdss").discover(native), "a table of labels is no table of spectra"
    assert all(source.epochs for source in discover("sdss", native, epochs=True))
    assert good("sdss", native)[0].object_id == layout.object_ids[0]

    write_hats(shared / "mmu_sdss", arrow(mmu_layouts.sdss(2)))
    assert len(good("sdss", shared)) == 2
    path = write_hdf5(shared, mmu_layouts.sdss(1), "segue1")
    shutil.copy(path, path.with_name("002-of-002.hdf5"))
    pixel = path.parent.name
    expected = [Source(f"segue1/{pixel}/{n}.hdf5", (path.with_name(f"{n}.hdf5"),), True) for n in ("001-of-001", "002-of-002")]
    assert discover("sdss", shared, epochs=True) == expected
    with pytest.raises(UserError, match="does not exist"):
        discover("sdss", tmp_path / "nowhere")


def test_labels_are_those_the_files_carry(tmp_path: Path) -> None:
    native, hdf5, short = tmp_path / "native", tmp_path / "hdf5", tmp_path / "short"
    native.mkdir()
    assert labels("sdss") == labels("sdss", native) == reader("sdss").LABELS
    write_hdf5(hdf5, mmu_layouts.galah(1))
    assert labels("galah", hdf5) == {"teff", "teff_err", "logg", "fe_h", "alpha_fe"}
    table = arrow(mmu_layouts.desi(1))
    write_hats(short / "mmu", table.drop_columns(["SPECTYPE"]))
    assert labels("desi", short) == {"z"}, "the HATS edition has no SPECTYPE"


# Real observations, put into the Multimodal Universe's layout as its builders do, against the surveys' own readers.


def test_real_galah_has_the_wavelengths_of_its_own_files(real_data: Path, tmp_path: Path) -> None:
    paths = sorted(real_data.glob("galah_dr3/native/*.fits.gz"))[:4]
    arms = {}
    for path in paths:
        with fits.open(path) as hdus:
            header, flux, error = hdus[0].header, hdus[0].data, hdus[1].data
            start, step, crpix = (float(header[card]) for card in ("CRVAL1", "CDELT1", "CRPIX1"))
            with np.errstate(divide="ignore"):
                arms[CAMERAS[header["SPECTID"].strip()]] = (mmu_layouts.galah_wavelength(start, step, len(flux), crpix), flux,
                                                            1 / (flux * error) ** 2)  # fmt: skip
    lengths = np.cumsum([0, *(len(arms[ccd][0]) for ccd in "BGRI")])
    parts = [np.concatenate([arms[ccd][i] for ccd in "BGRI"])[None].astype(np.float32) for i in range(3)]
    table = dict(zip(("spectrum_lambda", "spectrum_flux", "spectrum_ivar"), parts, strict=True))
    table |= {f"spectrum_{ccd}_ind_start": lengths[i : i + 1] for i, ccd in enumerate("BGRI")}
    table |= {"object_id": np.array([int(paths[0].name[:15])]), "ra": np.array([80.0]), "dec": np.array([1.0])}
    write_hdf5(tmp_path, table | {"healpix": np.array([7])})
    (ours,) = good("galah", tmp_path)
    (native,) = reader("galah").read(Source("x", tuple(paths)))
    assert isinstance(native, Observation) and ours.object_id == native.object_id and len(native.arms) >= 3
    for a, b in zip(ours.arms, native.arms, strict=True):
        assert a.name == b.name
        np.testing.assert_allclose(a.wavelength, b.wavelength, atol=2e-4)
        np.testing.assert_array_equal(a.flux, b.flux)
        np.testing.assert_allclose(a.ivar[b.ivar > 0], b.ivar[b.ivar > 0], rtol=1e-4)


def test_real_apogee_has_the_pixels_of_its_own_files(real_data: Path, tmp_path: Path) -> None:
    path = min(real_data.glob("apogee/**/apStar*.fits*"))
    with fits.open(path) as hdus:
        flux, error, mask = (np.atleast_2d(hdus[i].data)[0] for i in (1, 2, 3))
        star, ra, dec = hdus[0].header["OBJID"], hdus[0].header["RA"], hdus[0].header["DEC"]
    lam = mmu_layouts.apogee(1)["spectrum_lambda"]
    table = {"spectrum_lambda": lam, "spectrum_flux": flux[APOGEE_CROP][None], "spectrum_ivar": error[APOGEE_CROP][None] ** -2.0,
             "spectrum_bitmask": mask[APOGEE_CROP][None], "apogee_id": np.array([star.encode()]), "ra": np.array([ra]),
             "dec": np.array([dec]), "healpix": np.array([1])}  # fmt: skip
    write_hdf5(tmp_path, table)
    (ours,) = good("apogee", tmp_path)
    (native,) = reader("apogee").read(Source("x", (path,)))
    assert isinstance(native, Observation) and ours.object_id == native.object_id
    kept = set(APOGEE_CROP.tolist())
    for a, b in zip(ours.arms, native.arms, strict=True):
        assert (a.name, a.grid) == (b.name, b.grid)
        pixels = [p for p in range(a.first, a.first + len(a.flux)) if p in kept and b.first <= p < b.first + len(b.flux)]
        x, y = np.array(pixels) - a.first, np.array(pixels) - b.first
        np.testing.assert_array_equal(a.flux[x], b.flux[y])
        np.testing.assert_allclose(a.ivar[x], b.ivar[y], rtol=1e-6)
        assert len(pixels) > 1500
