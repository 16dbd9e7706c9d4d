from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcspec.errors import UserError
from hpcspec.shards.objects import healpix29
from hpcspec.stream.batches import in_order
from hpcspec.stream.index import DataIndex, open_index
from hpcspec.stream.stream import Stream
from hpcspec.stream.tokens import tokenize
from tests.making import GRIDS, dataset, shard, spectrum

OBJECTS = 400


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    """Objects all over the sky in two shards; the second shard repeats each position of the first under another name."""
    folder = tmp_path_factory.mktemp("sky")
    spectra = [spectrum(i, pixels=8) for i in range(OBJECTS // 2)]
    repeats = [spectrum(i, pixels=8, object_id=f"again-{i}") for i in range(OBJECTS // 2)]
    return open_index([shard(folder / "sdss-00000.h5", spectra), shard(folder / "desi-00000.h5", repeats, survey="desi")])


@given(seed=st.integers(0, 2**31), share=st.floats(0.05, 0.95))
def test_an_object_and_its_repeats_are_on_one_side(sky: DataIndex, seed: int, share: float) -> None:
    held = sky.sky_fraction(seed) < share
    np.testing.assert_array_equal(held[: OBJECTS // 2], held[OBJECTS // 2 :])


def test_other_data_move_no_object_to_the_other_side(sky: DataIndex) -> None:
    for some in (sky.shards[:1], sky.shards[1:], sky.shards[::-1]):
        np.testing.assert_array_equal(DataIndex(some).sky_fraction(4)[: OBJECTS // 2], sky.sky_fraction(4)[: OBJECTS // 2])


def test_the_share_of_the_sky_is_uniform_and_depends_on_the_seed(sky: DataIndex) -> None:
    fractions = np.concatenate([sky.sky_fraction(seed)[: OBJECTS // 2] for seed in range(50)])
    counts = np.histogram(fractions, bins=10, range=(0, 1))[0]
    assert counts.sum() == fractions.size and np.all(np.abs(counts - 1000) < 160)  # five standard deviations
    assert not np.allclose(sky.sky_fraction(0), sky.sky_fraction(1))


def test_neighbours_within_an_arcsecond_are_on_one_side(sky: DataIndex, tmp_path: Path) -> None:
    ra, dec = 150.01, 2.21  # not at the border of a pixel
    near = [spectrum(i, pixels=8, ra=ra + i / 3600, dec=dec) for i in (0, 1)]
    index = open_index([shard(tmp_path / "sdss-00000.h5", near)])
    assert len(set(index.joined("healpix").tolist())) == 2
    assert len(set(index.sky_fraction(7).tolist())) == 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_held_out_objects_are_never_delivered(sky: DataIndex, share: float) -> None:
    fraction = sky.sky_fraction(3)
    stream = Stream(sky, fraction >= share, seed=3, lanes=3, block=16, shuffle_blocks=2)
    delivered = [number for _, (_, number, _) in zip(range(2 * OBJECTS), stream, strict=False)]
    assert (fraction[delivered] >= share).all() and len(set(delivered)) == (fraction >= share).sum()


def test_the_index_numbers_objects_through_all_shards(sky: DataIndex) -> None:
    assert len(sky) == OBJECTS and sky.offsets.tolist() == [0, OBJECTS // 2, OBJECTS]
    assert sky.joined("ids")[[0, OBJECTS // 2 - 1, OBJECTS // 2]].tolist() == ["object-0000", "object-0199", "again-0"]
    assert sky.survey.tolist() == ["sdss"] * (OBJECTS // 2) + ["desi"] * (OBJECTS // 2)
    np.testing.assert_array_equal(sky.joined("healpix"), healpix29(sky.joined("ra"), sky.joined("dec")))


@pytest.mark.parametrize("patch", [1, 7, 8, 32])
def test_no_object_has_more_tokens_than_the_index_says(tmp_path: Path, patch: int) -> None:
    spectra = [spectrum(i, list(GRIDS)[: i % 4], pixels=5 + 9 * i) for i in range(1, 16) if i % 4]
    index = open_index([shard(tmp_path / "sdss-00000.h5", spectra)])
    limits = index.tokens(patch)
    counts = {number: len(tokenize(pixels, patch).values) + 1 for number, pixels in in_order(index, np.arange(len(index)))}
    assert all(counts[n] <= limits[n] for n in counts)
    assert patch == 1 or any(counts[n] == limits[n] for n in counts)  # it isn't just large; patches of one pixel lose the bad
    assert limits.tolist() == [sum(-(-len(a.flux) // patch) for a in s.arms) + 1 for s in spectra]


def test_an_index_without_shards_or_with_a_foreign_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards: ingest the survey's files first"):
        open_index([])
    index = dataset(tmp_path, [2])
    (tmp_path / "x.h5").write_text("no shard")
    with pytest.raises(UserError, match="can't read shard .*x.h5"):
        open_index([Path(index.shards[0].path), tmp_path / "x.h5"])
