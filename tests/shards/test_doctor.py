from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcspec.atomic import read_json, write_json
from hpcspec.errors import UserError
from hpcspec.shards.doctor import examine
from hpcspec.shards.format import FILTERS, INDEX, shard_paths
from hpcspec.shards.ingest import ingest, ingest_units
from hpcspec.simulate import simulate
from tests.making import shard, stored, unlike
from tests.shards.test_format import various

COUNTS = {"sources": 2, "rows_in": 12, "objects": 12, "quarantined": 0}


def indexed(path: Path) -> Path:
    """The shard's folder with the index that an ingest of it would have left."""
    content = {"survey": "sdss", "key": "0123", "schema_version": 2, "counts": COUNTS, "shards": [path.name]}
    write_json(path.parent / INDEX, content)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The one shard of a folder: spectra on every grid, light curves, scalars."""
    return indexed(shard(tmp_path / "sdss" / "sdss-00000.h5", various(12)))


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards from a real ingest with one bad file, and the survey's files beside it; tests copy it."""
    folder = tmp_path_factory.mktemp("ingested")
    simulate(folder, {"apogee": 5}, seed=3)
    (folder / "apogee/empty.fits").touch()
    ingest("apogee", folder / "apogee", folder / "shards", 0.1)
    return folder


@pytest.fixture
def folder(ingested: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ingested / "shards", tmp_path / "shards"))


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def said(capsys: pytest.CaptureFixture[str], place: Path) -> tuple[bool, list[str]]:
    capsys.readouterr()
    return examine(place), capsys.readouterr().out.splitlines()


def test_a_sound_folder_passes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    well, (line, books) = said(capsys, path.parent)
    assert well and line.startswith(f"ok   {path}: 12 objects, ")
    assert "schema 2, contiguous, filters none, not locked" in line
    assert books == f"ok   {path.parent}: 12 rows in = 12 objects + 0 quarantined, 1 shards"
    assert said(capsys, path) == (True, [line])  # the shard alone


def test_an_ingested_folder_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    well, lines = said(capsys, folder.parent)
    shards = shard_paths(folder)
    assert well and len(shards) > 1 and len(lines) == len(shards) + 1
    assert lines[-1] == f"ok   {folder}: 6 rows in = 5 objects + 1 quarantined, {len(shards)} shards"


def test_a_flipped_byte_is_found_in_every_data_set(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places: dict[str, tuple[int, int]] = {}

    def place(name: str, x: h5py.Group | h5py.Dataset) -> None:
        if isinstance(x, h5py.Dataset) and x.id.get_storage_size():
            places[name] = (x.id.get_offset(), x.id.get_storage_size())

    with h5py.File(path) as file:
        file.visititems(place)
    assert len(places) >= 30
    for name, (offset, size) in places.items():
        flip(path, offset + size // 2)
        well, lines = said(capsys, path.parent)
        flip(path, offset + size // 2)
        assert not well and lines[0].startswith(f"FAIL {path}: "), name
        assert f"checksum of {name}" in lines[0] or "can't read" in lines[0]
        assert lines[0].endswith(": delete it and ingest again")
    assert examine(path.parent)


@pytest.mark.parametrize("compression", [c for c in FILTERS if c != "none"])
def test_a_flipped_byte_is_found_in_compressed_samples(tmp_path: Path, compression: str, capsys) -> None:
    path = indexed(shard(tmp_path / "sdss-00000.h5", various(12), compression))
    with h5py.File(path) as file:
        chunks = [file[name].id.get_chunk_info(0) for name in ("sample/value", "sample/ivar")]
    for chunk in chunks:
        for part in (0.2, 0.5, 0.8):
            flip(path, chunk.byte_offset + int(chunk.size * part))
            assert not examine(tmp_path)
            flip(path, chunk.byte_offset + int(chunk.size * part))
    well, lines = said(capsys, tmp_path)
    assert well and compression in lines[0].lower() and "chunks of" in lines[0]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_shard_is_found(path: Path, share: float, capsys: pytest.CaptureFixture[str]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    well, lines = said(capsys, path.parent)
    assert not well and lines[0].startswith(f"FAIL {path}: can't read shard")


def test_one_bad_shard_doesn_t_hide_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = shard_paths(folder)
    shards[0].write_bytes(b"")
    well, lines = said(capsys, folder)
    assert not well and [line[:4] for line in lines[: len(shards)]] == ["FAIL", *["ok  "] * (len(shards) - 1)]


def test_a_shard_that_is_missing_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = shard_paths(folder)[1]
    lost.unlink()
    well, lines = said(capsys, folder)
    assert not well and any(line.startswith(f"FAIL {lost}: can't read shard") for line in lines)


def test_every_shard_missing_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = shard_paths(folder)
    for lost in shards:
        lost.unlink()
    well, lines = said(capsys, folder)
    assert not well and sum(line.startswith("FAIL") for line in lines) >= len(shards)


@pytest.mark.parametrize("content", [None, "", '{"survey": "apo', "{}"])
def test_a_folder_without_its_index_is_found(folder: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / INDEX).unlink() if content is None else (folder / INDEX).write_text(content)
    well, lines = said(capsys, folder)
    assert not well and lines[-1] == f"FAIL {folder}: no {INDEX}: the ingest was not finished; run it again"


def edit(folder: Path, **counts: int) -> None:
    index = read_json(folder / INDEX)
    write_json(folder / INDEX, {**index, "counts": {**index["counts"], **counts}})


def test_books_that_don_t_balance_are_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (folder / INDEX).read_text()
    for counts, fault in (({"objects": 6, "rows_in": 7}, "5 objects in the shards, 6 in the books"),
                          ({"rows_in": 7}, "7 rows in, 5 objects, 1 quarantined"),
                          ({"quarantined": 2, "rows_in": 7}, "7 rows in, 5 objects, 1 quarantined")):  # fmt: skip
        edit(folder, **counts)
        well, lines = said(capsys, folder)
        assert not well
        assert lines[-1] == f"FAIL {folder}: the books don't balance: {fault}: delete {INDEX} and ingest again"
        (folder / INDEX).write_text(whole)
    bad = folder / "quarantine/apogee.jsonl"
    for rows in (bad.read_text() * 2, ""):
        bad.write_text(rows)
        assert not examine(folder)
    bad.unlink()
    assert not examine(folder)


def test_a_listed_shard_of_another_ingest_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = shard_paths(folder)[:2]
    shutil.copy(first, second)
    shard(first, various(3))
    well, lines = said(capsys, folder)
    assert not well and "objects in the shards, 5 in the books" in lines[-1]


def test_what_is_left_behind_is_named(ingested: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None of it is a fault: stray shards, files of killed tasks, what was read of the survey's files."""
    stray = folder / "apogee-01234567-00000.h5"
    shutil.copy(shard_paths(folder)[0], stray)
    stale = folder / f".{stray.name}.node.17.tmp"
    stale.write_bytes(b"half")
    ingest_units("apogee", ingested / "apogee", folder, 0, 1)
    well, lines = said(capsys, folder.parent)
    assert well
    assert f"note {stray}: of an older or unfinished ingest; the next one removes it" in lines
    assert f"note {stale}: left by a killed task; delete it when nothing is running" in lines
    assert any(line.startswith(f"note {folder / 'units'}: ") and "MiB of files read already" in line for line in lines)
    assert not any("units/" in line for line in lines)
    ingest("apogee", ingested / "apogee", folder, 0.1)
    assert not stray.exists() and not (folder / "units").exists()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """As another program that writes it would lock it."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_locked_file_is_read_and_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(path):
        well, lines = said(capsys, path.parent)
    assert well and "locked or on a file system without locks: other programs need HDF5_USE_FILE_LOCKING=FALSE" in lines[0]
    assert "not locked" in said(capsys, path.parent)[1][0]


def test_shards_are_found_below(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = indexed(shard(path.parents[1] / "deeper/desi/desi-00000.h5", various(12)))
    well, lines = said(capsys, path.parents[1])
    assert well and [str(p) in " ".join(lines) for p in (path, other)] == [True, True]
    other.write_bytes(b"")
    assert not examine(path.parents[1])


def test_no_shard_at_all_is_a_user_error(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="no shards in"):
            examine(place)


def test_a_flipped_byte_anywhere_is_found_or_does_no_harm(path: Path) -> None:
    """HDF5's own structures too: some bytes hold nothing, but where the doctor says nothing the content must be the same."""
    content, before = path.read_bytes(), stored(path)
    found = 0
    for offset in np.random.default_rng(3).integers(0, len(content), 80).tolist():
        flip(path, offset)
        if examine(path.parent):
            for (a, *whence), (b, *whence_now) in zip(before, stored(path), strict=True):
                assert not unlike(a, b) and whence == whence_now, offset
        else:
            found += 1
        path.write_bytes(content)
    assert found > 50


def test_the_index_is_plain_json(ingested: Path) -> None:
    """For other programs: which shards, of which survey, with which books."""
    index = json.loads((ingested / "shards" / INDEX).read_text())
    assert index["survey"] == "apogee" and index["counts"] == {"sources": 6, "rows_in": 6, "objects": 5, "quarantined": 1}
    assert [ingested / "shards" / name for name in index["shards"]] == shard_paths(ingested / "shards")
