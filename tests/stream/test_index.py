from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcspec.errors import UserError
from hpcspec.shards.objects import healpix29
from hpcspec.stream.index import DataIndex, open_index
from hpcspec.stream.vocabulary import Vocabulary
from hpcspec.surveys.observation import Observation
from tests.making import GRIDS, batch, dataset, shard, spectrum, star, words
from tests.stream.cases import Case, light_curve, thing, until

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
    held, trained = sky.sky_fraction(seed) < share, sky.lowest_fraction(seed) >= share
    for side in (held, trained):
        np.testing.assert_array_equal(side[: OBJECTS // 2], side[OBJECTS // 2 :])
    assert not (held & trained).any()


def test_other_data_move_no_object_to_the_other_side(sky: DataIndex) -> None:
    for some in (sky.shards[:1], sky.shards[1:], sky.shards[::-1]):
        np.testing.assert_array_equal(DataIndex(some).sky_fraction(4)[: OBJECTS // 2], sky.sky_fraction(4)[: OBJECTS // 2])
        np.testing.assert_array_equal(DataIndex(some).lowest_fraction(4)[: OBJECTS // 2], sky.lowest_fraction(4)[: OBJECTS // 2])


def test_neighbours_within_an_arcsecond_are_on_one_side(tmp_path: Path) -> None:
    ra, dec = 150.01, 2.21  # not at the border of a pixel
    near = [spectrum(i, pixels=8, ra=ra + i / 3600, dec=dec) for i in (0, 1)]
    index = open_index([shard(tmp_path / "sdss-00000.h5", near)])
    assert len(set(index.column("healpix").tolist())) == 2
    assert len(set(index.sky_fraction(7).tolist())) == 1


PLACELESS: list[dict[str, Any]] = [{"ra": np.nan, "dec": np.nan}, {"meta": {"position": "plate"}}]


@pytest.mark.parametrize("changed", PLACELESS)
def test_objects_without_a_position_of_their_own_are_split_by_identifier(tmp_path: Path, changed: dict[str, Any]) -> None:
    """…in the index and in the stream, beside others that have one."""

    def some(survey: str, first: int) -> list[Observation]:
        rng = np.random.default_rng(first)
        return [spectrum(i, pixels=8, survey=survey, **({"ra": rng.uniform(0, 360), "dec": 0.0} | changed if i % 3 else {}))
                for i in range(30)]  # fmt: skip

    index = open_index([shard(tmp_path / f"{s}.h5", some(s, k), survey=s) for k, s in enumerate(("sdss", "desi"))])
    fraction = index.sky_fraction(5)
    assert (fraction[:30] == fraction[30:]).all() and len(set(fraction)) == 30
    with Case(index, {"seed": 5, "lanes": 2, "block": 4, "shuffle_blocks": 2}, {"share": 0.4}).rank() as stream:
        delivered = [n for _, n in until(stream, 1)]
    assert sorted(delivered) == np.flatnonzero(index.lowest_fraction(5) >= 0.4).tolist() and 15 < len(delivered) < 50


def test_the_index_numbers_objects_through_all_shards(sky: DataIndex) -> None:
    assert len(sky) == OBJECTS and sky.offsets.tolist() == [0, OBJECTS // 2, OBJECTS]
    assert sky.column("id")[[0, OBJECTS // 2 - 1, OBJECTS // 2]].tolist() == ["object-0000", "object-0199", "again-0"]
    assert sky.survey.tolist() == ["sdss"] * (OBJECTS // 2) + ["desi"] * (OBJECTS // 2)
    np.testing.assert_array_equal(sky.column("healpix"), healpix29(sky.column("ra"), sky.column("dec")))


@pytest.mark.parametrize("size", [1, 7, 8, 32])
def test_no_object_has_more_tokens_than_the_index_says(tmp_path: Path, size: int) -> None:
    ones = [spectrum(i, list(GRIDS)[: i % 4], pixels=5 + 9 * i) for i in range(1, 16) if i % 4]
    ones += [light_curve(3, 50), thing(9), star(2), spectrum(40, (), scalars={"age": (1.0, 0.1)})]
    index = open_index([shard(tmp_path / "sdss-00000.h5", ones)])
    for of in (
        words(size),
        words(size, size),
        Vocabulary(size, 3, ("spectra",)),
        Vocabulary(size, 3, ("scalars",), (), ("teff",)),
    ):
        limits, wanted = index.tokens(of), []
        for one in ones:
            arms = [len(a.flux) + a.first % size for a in one.arms] if "spectra" in of.inputs else []
            curves = [len(c.time) for c in one.curves if f"{c.band} {c.unit}" in of.bands]
            wanted.append(1 + sum(-(-n // size) for n in arms) + 2 * bool(arms) + sum(-(-n // of.epochs) + 2 for n in curves)
                          + len(set(one.scalars) & set(of.measured)))  # fmt: skip
        assert limits.tolist() == wanted
        made = batch(ones, of)
        counts = np.array(made.lengths)[np.argsort(made.objects)]
        assert (counts <= limits).all()
        assert size == 1 or (counts == limits).any()  # it isn't just large; patches of one pixel lose the bad


@pytest.mark.parametrize("changed", [{"pixels": 13}, {"grids": ("linear",)}, {"ra": 10.0}, {"object_id": "new"}, {"number": 9}])
def test_the_fingerprint_changes_with_the_data(tmp_path: Path, changed: dict[str, Any]) -> None:
    def fingerprint(folder: str, number: int = 0, **changed: Any) -> str:
        one = spectrum(number, **{"pixels": 12, **changed})
        return open_index([shard(tmp_path / folder / "sdss-00000.h5", [one])]).fingerprint

    assert fingerprint("a") == fingerprint("b") != fingerprint("c", **changed)


def test_an_index_without_shards_or_with_a_foreign_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards: ingest the survey's files first"):
        open_index([])
    index = dataset(tmp_path, [2])
    (tmp_path / "x.h5").write_text("no shard")
    with pytest.raises(UserError, match="can't read shard .*x.h5"):
        open_index([Path(index.shards[0].path), tmp_path / "x.h5"])


@pytest.mark.filterwarnings("error")
def test_a_shard_that_was_changed_is_refused_and_its_file_closed_once(tmp_path: Path) -> None:
    index = dataset(tmp_path, [2])
    path = Path(index.shards[0].path)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UserError, match=r"sdss-00000.h5 has \d+ bytes, it had \d+: it was changed; start again"):
        index.column("ra")
