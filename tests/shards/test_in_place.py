"""Multimodal Universe files that are read where they are: the shards hold everything but the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hpcspec.errors import UserError
from hpcspec.shards.doctor import examine
from hpcspec.shards.format import shard_paths
from hpcspec.shards.ingest import ingest
from hpcspec.stream.batches import ordered_batches, packs
from hpcspec.stream.index import open_index
from hpcspec.stream.stream import Stream
from hpcspec.stream.vocabulary import Vocabulary
from hpcspec.surveys import read_rows
from tests.making import stored, unlike
from tests.surveys import mmu_layouts

ROWS = 40


@pytest.fixture(params=["hdf5", "variable length", "hats"])
def written(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def write(folder: Path, survey: str, how: str) -> Path:
    """A file of ROWS objects of a survey in that layout."""
    table = mmu_layouts.TABLES[survey](ROWS)
    if how == "hats":
        return mmu_layouts.write_hats(folder, mmu_layouts.arrow(table), row_group_size=16)
    return (mmu_layouts.write_variable_length if how == "variable length" else mmu_layouts.write_hdf5)(folder, table)


@pytest.mark.parametrize("survey", ["sdss", "apogee", "galah"])
def test_the_stream_delivers_the_same_samples_as_from_a_copy(tmp_path: Path, survey: str, written: str) -> None:
    write(tmp_path / "files", survey, written)
    found = []
    for in_place in (False, True):
        folder = tmp_path / f"shards-{in_place}"
        ingest(survey, tmp_path / "files", folder, 1.0, in_place=in_place)
        index = open_index(shard_paths(folder))
        stream = Stream(index, 3, lanes=2, block=8, shuffle_blocks=2, share=0.2)
        batches = packs(stream, 400)
        found.append([next(batches) for _ in range(6)])
        assert (sum(p.stat().st_size for p in folder.glob("*.h5")) < 100_000) == in_place
        stream.close()
    for copied, placed in zip(*found, strict=True):
        assert torch.equal(copied.samples, placed.samples) and np.array_equal(copied.numbers, placed.numbers)
        assert copied.state is not None and placed.state is not None
        assert copied.state["positions"] == placed.state["positions"]


def test_whole_objects_come_back_and_the_doctor_finds_nothing(tmp_path: Path) -> None:
    write(tmp_path / "files", "desi", "hdf5")
    ingest("desi", tmp_path / "files", tmp_path / "copy", 1.0)
    ingest("desi", tmp_path / "files", tmp_path / "placed", 1.0, in_place=True)
    copied, placed = ([one for path in shard_paths(tmp_path / name) for one in stored(path)] for name in ("copy", "placed"))
    assert len(copied) == ROWS and not [names for a, b in zip(copied, placed, strict=True) if (names := unlike(a[0], b[0]))]
    assert examine(tmp_path / "placed")
    index = open_index(shard_paths(tmp_path / "placed"))
    assert sum(len(b) for b in ordered_batches(index, np.arange(ROWS), Vocabulary(), 2000)) == ROWS


@pytest.mark.parametrize("change", ["gone", "longer", "other pixels"])
def test_a_file_that_changed_is_a_user_error(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "files", "sdss", "hdf5")
    ingest("sdss", tmp_path / "files", tmp_path / "shards", 1.0, in_place=True)
    if change == "gone":
        path.unlink()
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"more")
    else:
        with h5py.File(path, "a") as file:
            file["spectrum_lambda"][3, 100:] = -1
            file["spectrum_mask"][3, 100:] = True
    with pytest.raises(UserError, match=r"001-of-001.hdf5, which .* reads in place, (is gone or|was) changed: ingest again"):
        list(ordered_batches(open_index(shard_paths(tmp_path / "shards")), np.arange(ROWS), Vocabulary(), 2000))


def flux_of(folder: Path) -> dict[str, np.ndarray]:
    return {one.object_id: one.arms[0].flux for path in shard_paths(folder) for one, *_ in stored(path)}


@pytest.mark.parametrize("how", ["hdf5", "hats"])
def test_a_file_of_the_same_size_with_its_rows_in_another_order_is_a_user_error(tmp_path: Path, how: str) -> None:
    def rewritten(order: list[int]) -> Path:
        table = {name: values[order] for name, values in mmu_layouts.desi(6).items()}
        if how == "hdf5":
            return mmu_layouts.write_hdf5(tmp_path / "files", table)
        plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        return mmu_layouts.write_hats(tmp_path / "files", mmu_layouts.arrow(table), row_group_size=3, **plain)

    size = rewritten(list(range(6))).stat().st_size
    ingest("desi", tmp_path / "files", tmp_path / "shards", 1.0, in_place=True)
    assert len(flux_of(tmp_path / "shards")) == 6
    assert rewritten([0, 1, 2, 4, 3, 5]).stat().st_size == size
    with pytest.raises(UserError, match="which .* reads in place, was changed: ingest again"):
        flux_of(tmp_path / "shards")


@pytest.mark.parametrize("groups", [(5, 6), (5, 3), (1, 3), (1, 0)])
def test_behind_a_group_that_misdeclares_its_rows_every_object_keeps_its_own(tmp_path: Path, groups: tuple[int, int]) -> None:
    size, declared = groups
    table = mmu_layouts.desi(size + 3)
    path = mmu_layouts.write_hats(tmp_path / "files", mmu_layouts.arrow(table), row_group_size=size)
    mmu_layouts.misdeclare(path, 0, declared)
    counts = ingest("desi", tmp_path / "files", tmp_path / "shards", 1.0, in_place=True)
    found = flux_of(tmp_path / "shards")
    assert counts.quarantined == 1 and sorted(found) == sorted(table["object_id"][size:].astype(str))
    for object_id, flux in zip(table["object_id"], table["spectrum_flux"], strict=True):
        assert str(object_id) not in found or np.array_equal(found[str(object_id)], flux)


@pytest.mark.parametrize(("how", "rows"), [("hdf5", 2), ("hats", 1), ("hats", 2)])
def test_rows_that_a_file_no_longer_has_are_a_user_error(tmp_path: Path, how: str, rows: int) -> None:
    table = mmu_layouts.sdss(rows)
    hats = how == "hats"
    file = mmu_layouts.write_hats(tmp_path, mmu_layouts.arrow(table)) if hats else mmu_layouts.write_hdf5(tmp_path, table)
    with pytest.raises(UserError, match="has only 1 of 2 rows that it had: it was changed; ingest again"):
        read_rows("sdss", file, [rows - 1, rows])
    if hats:
        mmu_layouts.misdeclare(file, 0, rows + 4)
        with pytest.raises(UserError, match="has only 0 of 1 rows"):
            read_rows("sdss", file, [0])


def test_a_first_file_that_cannot_be_read_is_quarantined_like_any_other(tmp_path: Path) -> None:
    path = write(tmp_path / "files", "sdss", "hdf5")
    path.with_name("000-of-001.hdf5").write_bytes(b"")
    counts = ingest("sdss", tmp_path / "files", tmp_path / "shards", 1.0, in_place=True)
    assert (counts.objects, counts.quarantined) == (ROWS, 1)


def test_stars_without_spectra_have_no_samples_to_read(tmp_path: Path) -> None:
    table = mmu_layouts.gaia(4)
    table |= {f"{band}_coefficient_correlations": np.zeros((4, 1485), np.float32) for band in ("bp", "rp")}
    table["coeff"][1:3] = np.nan
    mmu_layouts.write_hdf5(tmp_path / "files", table)
    for in_place in (False, True):
        ingest("gaia", tmp_path / "files", tmp_path / f"{in_place}", 1.0, in_place=in_place)
    copied, placed = ([one for path in shard_paths(tmp_path / f"{p}") for one in stored(path)] for p in (False, True))
    assert sorted(len(one.arms) for one, *_ in copied) == [0, 0, 1, 1]
    assert not [names for a, b in zip(copied, placed, strict=True) if (names := unlike(a[0], b[0]))]


def test_only_the_multimodal_universe_is_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "spec-1-2-3.fits").write_bytes(b"")
    with pytest.raises(UserError, match="can't be read in place.*ingest.samples: copy"):
        ingest("sdss", tmp_path / "files", tmp_path / "shards", 1.0, in_place=True)
