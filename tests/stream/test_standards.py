"""How scalars are standardised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from hpcspec.stream.index import DataIndex, open_index
from hpcspec.stream.standards import RUN, Standards, _sample, standards
from hpcspec.stream.vocabulary import Vocabulary
from tests.making import WORDS, batch, shard, spectrum
from tests.stream.cases import thing


def measured(folder: Path, values: Mapping[str, Sequence[float]], survey: str = "gaia") -> tuple[DataIndex, Vocabulary]:
    """Objects with these scalars, NaN where one has none."""
    count = len(next(iter(values.values())))
    ones = [
        spectrum(i, (), scalars={n: (float(v[i]), 0.1) for n, v in values.items() if np.isfinite(v[i])}) for i in range(count)
    ]
    path = shard(folder / f"{survey}-0.h5", ones, survey=survey)
    return open_index([path]), Vocabulary(8, 4, measured=tuple(sorted(values)))


def of(name: str, found: Standards, words: Vocabulary) -> tuple[float, float, float]:
    k = words.names.index(name)
    return float(found.center[k]), float(found.spread[k]), float(found.logarithmic[k])


RNG = np.random.default_rng(0)
PARALLAX = 10 ** RNG.uniform(-1, 2, 201)


@pytest.mark.parametrize(("values", "logarithmic"), [
    (RNG.normal(5000, 300, 201), False), (RNG.normal(0, 1e4, 201), False), (PARALLAX, True), (1 + 25 * RNG.random(201), False),
    (np.where(np.arange(201) == 7, -1e-3, PARALLAX), False), (np.where(np.arange(201) == 7, 0, PARALLAX), False),
    (np.where(np.arange(201) < 100, np.nan, PARALLAX), True), (1e-30 * PARALLAX, True),
])  # fmt: skip
def test_they_are_median_and_spread_of_the_logarithm_where_positive_over_decades(
    tmp_path: Path, values: np.ndarray, logarithmic: bool
) -> None:
    index, words = measured(tmp_path, {"x": values, "constant": np.full(201, 2.0)})
    known = values[np.isfinite(values)].astype(np.float32).astype(np.float64)
    known = np.log10(known) if logarithmic else known
    center = np.median(known)
    spread = 1.4826 * np.median(np.abs(known - center))
    assert of("x", standards(index, words), words) == pytest.approx((center, spread, float(logarithmic)), rel=1e-5)


@pytest.mark.parametrize(("values", "wanted"), [
    ([3.0] * 9, (3.0, 3.0)), ([0.0] * 9, (0.0, 1.0)), ([-0.5] * 9, (-0.5, 1.0)),
    ([1.0] * 8 + [4.0], (1.0, np.std([1.0] * 8 + [4.0]))),
])  # fmt: skip
def test_a_spread_is_never_0(tmp_path: Path, values: list[float], wanted: tuple[float, float]) -> None:
    index, words = measured(tmp_path, {"x": values})
    assert of("x", standards(index, words), words) == pytest.approx((*wanted, 0))


def test_names_that_no_object_has_and_the_object_s_own_token_stay_as_they_are(tmp_path: Path) -> None:
    index, _ = measured(tmp_path, {"x": [1.0, 2.0, 4.0]})
    words = Vocabulary(8, 4, measured=("absent", "x"))
    found = standards(index, words)
    assert all(x.shape == (len(words.names),) and x.dtype == np.float32 for x in found)
    for name in ("object", "log10_flux_scale", "absent"):
        assert of(name, found, words) == (0, 1, 0)


def test_every_survey_counts_and_so_do_what_measurements_were_divided_by(pool: DataIndex) -> None:
    found = standards(pool, WORDS)
    ones = [thing(n) for n in range(len(pool))]
    tokens = batch(ones, WORDS)
    for k, name in enumerate(WORDS.names[1:], 1):
        values = tokens.scalars.value[tokens.scalars.name == k].numpy().astype(np.float64)
        logarithmic = values.min() > 0 and np.quantile(values, 0.99) > 30 * np.quantile(values, 0.01)
        values = np.log10(values) if logarithmic else values
        assert found.center[k] == pytest.approx(np.median(values), rel=1e-5, abs=1e-6), name
        assert found.spread[k] == pytest.approx(1.4826 * np.median(np.abs(values - np.median(values))), rel=1e-5), name
        assert found.logarithmic[k] == logarithmic, name
    assert all(np.array_equal(a, b) for a, b in zip(found, standards(pool, WORDS), strict=True))


def test_of_many_objects_a_sample_from_all_over_each_survey_is_read(pool: DataIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _sample(pool).tolist() == list(range(len(pool)))
    monkeypatch.setattr("hpcspec.stream.standards.SAMPLE", 2 * RUN)
    few = _sample(pool)
    assert (np.diff(few) > 0).all()
    for survey in np.unique(pool.survey):
        of_survey = np.flatnonzero(pool.survey == survey)
        chosen = np.intersect1d(few, of_survey)
        assert 0 < len(chosen) <= 2 * RUN and chosen[0] == of_survey[0]
        assert of_survey[-1] - chosen[-1] < RUN
