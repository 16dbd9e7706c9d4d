from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcspec.errors import UserError
from hpcspec.shards.format import FILTERS, Shard, healpix29, shard_paths, write_shard
from hpcspec.surveys.base import FLAM
from hpcspec.surveys.observation import Arm, Observation
from tests.making import GRIDS, INPUTS, make, shard, spectrum, stored, unlike

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
METAS = st.fixed_dictionaries({"survey_key": st.integers(-(2**63), 2**63 - 1), "name": TEXT}, optional={
    "z": st.floats(allow_nan=False), "note": TEXT, "fiber": st.integers(-1000, 1000)})  # fmt: skip


@st.composite
def objects(draw: st.DrawFn) -> list[Observation]:
    out = []
    for i in range(draw(st.integers(0, 4))):
        arms = [make(draw(st.sampled_from(list(GRIDS))), draw(st.integers(1, 40)), (i, j), draw(st.sampled_from("brz")))
                for j in range(draw(st.integers(1, 3)))]  # fmt: skip
        unit, frame = draw(st.sampled_from([(FLAM, "observed"), ("relative", "rest"), (FLAM, "rest")]))
        out.append(spectrum(i, object_id=draw(TEXT), arms=tuple(arms), flux_unit=unit, frame=frame, meta=draw(METAS)))
    return out


@settings(max_examples=40, deadline=None)
@given(spectra=objects(), compression=st.sampled_from(list(FILTERS)))
def test_whatever_is_written_comes_back_bit_for_bit(spectra: list[Observation], compression: str, tmp_path_factory) -> None:
    path = shard(tmp_path_factory.mktemp("shard") / "sdss-00000.h5", spectra, compression)
    back = stored(path)
    assert [(source, row) for _, source, row in back] == [(i % 2, i // 2) for i in range(len(spectra))]
    assert [unlike(a, b) for a, (b, _, _) in zip(spectra, back, strict=True)] == [[] for _ in spectra]
    with Shard(path) as opened:
        assert not opened.damaged()
        assert opened.sources()[0] == ["a.fits", "b.fits"] and opened.inputs == INPUTS
        index = opened.index()
        np.testing.assert_array_equal(index.healpix, healpix29(index.ra, index.dec))
        np.testing.assert_array_equal(index.sn_median, np.array([s.sn_median for s in spectra], np.float32))


@pytest.mark.parametrize("compression", FILTERS)
def test_a_part_is_read_as_it_is_in_the_whole(tmp_path: Path, compression: str) -> None:
    spectra = [spectrum(i, list(GRIDS)[: 1 + i % 5], pixels=30 + 7 * i) for i in range(9)]
    with Shard(shard(tmp_path / "sdss-00000.h5", spectra, compression)) as opened:
        index = opened.index()
        for start, stop in [(0, 9), (0, 1), (3, 6), (8, 9), (4, 4)]:
            read = opened.read(index, start, stop)
            assert len(read) == stop - start
            for pixels, wanted in zip(read, spectra[start:stop], strict=True):
                for (wavelength, flux, ivar), arm in zip(pixels.arms, wanted.arms, strict=True):
                    assert wavelength.tobytes() == arm.wavelength.tobytes()
                    assert flux.tobytes() == arm.flux.tobytes() and ivar.tobytes() == arm.ivar.tobytes()


def test_the_shard_is_compressed_only_where_it_says_so(tmp_path: Path) -> None:
    flat = spectrum(arms=(Arm("b", *GRIDS["log10"], np.ones(50_000, "f4"), np.ones(50_000, "f4")),))
    sizes = {c: shard(tmp_path / f"{c}.h5", [flat], c).stat().st_size for c in FILTERS}
    assert sizes["none"] > 400_000 and sizes["blosc"] < 100_000 and sizes["zstd"] < 100_000


def test_a_shared_wavelength_grid_is_stored_once(tmp_path: Path) -> None:
    path = shard(tmp_path / "sdss-00000.h5", [spectrum(i, list(GRIDS)) for i in range(5)])
    with Shard(path) as opened:
        assert len(opened.index().grids) == len(GRIDS)
        assert opened.file["grid/values"].shape == (len(GRIDS["table"][0].values),)


def test_64_bit_identifiers_stay_exact(tmp_path: Path) -> None:
    """2⁵³+1 is the first integer that a float can't hold; missing in one object, it must not become one either."""
    big = 2**53 + 1
    metas = [{"targetid": big, "partial": big, "unsigned": 2**64 - 1}, {"targetid": -big, "unsigned": 3}]
    spectra = [spectrum(i, object_id=str(big + i), meta=m) for i, m in enumerate(metas)]
    (first, *_), (second, *_) = stored(shard(tmp_path / "sdss-00000.h5", spectra))
    assert first.object_id == "9007199254740993" and second.object_id == "9007199254740994"
    assert first.meta["targetid"] == big and second.meta["targetid"] == -big
    assert int(first.meta["partial"]) == big and "partial" not in second.meta
    assert [int(s.meta["unsigned"]) for s in (first, second)] == [2**64 - 1, 3]


WRITE = """
from pathlib import Path
from hpcspec.shards.format import write_shard
from tests.making import GRIDS, shard, spectrum
shard(Path({path!r}), [spectrum(i, list(GRIDS)) for i in range(4)])
"""


@pytest.mark.parametrize("compression", FILTERS)
def test_the_same_objects_give_the_same_bytes(tmp_path: Path, compression: str) -> None:
    spectra = [spectrum(i, list(GRIDS)) for i in range(4)]
    first = shard(tmp_path / "one.h5", spectra, compression).read_bytes()
    time.sleep(1.05)  # HDF5's time stamps count seconds
    assert shard(tmp_path / "another.h5", spectra, compression).read_bytes() == first


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    here = shard(tmp_path / "here.h5", [spectrum(i, list(GRIDS)) for i in range(4)])
    code, env = WRITE.format(path=str(tmp_path / "there.h5")), {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], env=env)
    assert (tmp_path / "there.h5").read_bytes() == here.read_bytes()


def test_another_schema_version_says_what_to_do(tmp_path: Path) -> None:
    path = shard(tmp_path / "sdss-00000.h5", [spectrum()])
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(UserError, match="schema version 99, this program reads 1: ingest again"):
        Shard(path)


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["flux"] = np.ones(3)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def words(path: Path) -> None:
    path.write_text("no HDF5")


def nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize("content", [foreign, empty, words, nothing, Path.mkdir])
def test_what_is_no_shard_is_a_user_error_that_names_it(tmp_path: Path, content) -> None:
    content(tmp_path / "sdss-00000.h5")
    with pytest.raises(UserError, match="sdss-00000.h5"):
        Shard(tmp_path / "sdss-00000.h5")


def test_a_failed_write_leaves_the_old_shard_and_no_other_file(tmp_path: Path) -> None:
    path = shard(tmp_path / "sdss-00000.h5", [spectrum(1)])
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write_shard(path, [(spectrum(2), 0, "row")], ["a.fits"], "sdss", INPUTS)  # type: ignore[list-item]
    assert path.read_bytes() == before
    assert shard_paths(tmp_path) == [path] and [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]


def test_an_unwritable_place_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write .*file/sdss-00000.h5"):
        write_shard(tmp_path / "file" / "sdss-00000.h5", [(spectrum(), 0, 0)], ["a.fits"], "sdss", INPUTS)
