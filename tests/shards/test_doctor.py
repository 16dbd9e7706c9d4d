from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcspec.errors import UserError
from hpcspec.shards.doctor import examine
from hpcspec.shards.format import FILTERS
from tests.making import GRIDS, shard, spectrum, stored, unlike

NUMBERS = ("object/ra", "object/dec", "object/healpix", "object/sn_median", "object/source", "object/row", "object/segments",
           "segment/pixels", "segment/grid", "segment/first", "segment/arm", "grid/start", "grid/step", "grid/values",
           "value/flux", "value/ivar", "meta/plate")  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return shard(tmp_path / "sdss" / "sdss-00000.h5", [spectrum(i, ("log10", "table")) for i in range(6)])


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def test_a_sound_folder_passes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert examine(path.parent)
    assert "ok   " in (said := capsys.readouterr().out) and "6 objects, 1440 pixels" in said and "schema 1" in said


@pytest.mark.parametrize("name", NUMBERS)
def test_a_flipped_byte_is_found_in_every_data_set(path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(path) as file:
        data = file[name]
        offset = data.id.get_chunk_info(0).byte_offset if data.chunks else data.id.get_offset()
        size = data.id.get_storage_size()
    flip(path, offset + size // 2)
    assert not examine(path.parent)
    assert f"FAIL {path}: checksum of {name}: delete it and ingest again" in capsys.readouterr().out


@pytest.mark.parametrize("text", [b"object-0003", b"b.fits", b"erg", b"observed", b"table-1"])
def test_a_flipped_byte_is_found_in_text(path: Path, text: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert path.read_bytes().count(text) == 1
    flip(path, path.read_bytes().index(text) + 1)
    assert not examine(path.parent)
    assert "checksum of" in capsys.readouterr().out


@pytest.mark.parametrize("compression", [c for c in FILTERS if c != "none"])
def test_a_flipped_byte_is_found_in_compressed_pixels(
    tmp_path: Path, compression: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shard(tmp_path / "sdss-00000.h5", [spectrum(i, pixels=2000) for i in range(6)], compression)
    with h5py.File(path) as file:
        chunk = file["value/flux"].id.get_chunk_info(0)
    for part in (0.2, 0.5, 0.8):
        flip(path, chunk.byte_offset + int(chunk.size * part))
        assert not examine(tmp_path)
        flip(path, chunk.byte_offset + int(chunk.size * part))
    capsys.readouterr()
    assert examine(tmp_path)
    assert compression in capsys.readouterr().out.lower()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_shard_is_found(path: Path, share: float, capsys: pytest.CaptureFixture[str]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert not examine(path.parent)
    assert "FAIL" in capsys.readouterr().out


def test_one_bad_shard_doesn_t_hide_the_others(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(path.with_name("sdss-00001.h5"), [spectrum(7, list(GRIDS))])
    path.write_bytes(b"")
    assert not examine(path.parent)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == ["FAIL", "ok  "]


@pytest.mark.parametrize("books", [None, '{"inputs": "another"}', '{"inp'])
def test_a_shard_without_its_books_is_found(path: Path, books: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    place = path.parent / "books" / "sdss-00000.json"
    place.unlink() if books is None else place.write_text(books)
    assert not examine(path.parent)
    assert "no books" in capsys.readouterr().out


def test_shards_are_found_below_and_stale_files_named(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stale = path.with_name(f".{path.name}.node.17.tmp")
    stale.write_bytes(b"half")
    assert examine(path.parents[1])
    assert f"note {stale}: left by a killed task" in capsys.readouterr().out


def test_no_shard_at_all_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards in"):
        examine(tmp_path)


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
