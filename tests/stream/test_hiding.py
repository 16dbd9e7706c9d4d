"""What a training step hides of each object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcspec.stream.batch import Batch
from hpcspec.stream.tokens import Hiding, hide, tokenize
from hpcspec.stream.vocabulary import PERIOD, SCALARS, Vocabulary
from hpcspec.surveys.observation import Observation
from tests.making import WORDS, curve, packed, spectrum, star, tensors
from tests.stream.cases import light_curve, thing

SHARES = st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)).map(sorted).filter(lambda s: s[1] > 0)


def hidden(lengths: Sequence[int], how: Hiding, epochs: Any = 0, numbers: Any = 7, parts: Any = None) -> list[np.ndarray]:
    """Of objects of these lengths, each with its own token first; all others are of one part if `parts` is not given."""
    counts = np.array(lengths)
    own = np.concatenate([np.arange(n) == 0 for n in lengths])
    part = np.where(own, -1, 0) if parts is None else np.concatenate(parts)
    epochs, numbers = (np.broadcast_to(np.asarray(x), counts.shape) for x in (epochs, numbers))
    found = hide(counts, own, part, how, epochs, numbers)
    assert found.dtype == bool and not found[own].any()
    return np.split(found, np.cumsum(counts)[:-1])


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=8), shares=SHARES, seed=st.integers(0, 2**32))
def test_the_share_hidden_is_as_asked(lengths: list[int], shares: list[float], seed: int) -> None:
    how, numbers, epochs = Hiding(*shares, seed=seed), np.arange(len(lengths)) + 7, np.arange(len(lengths)) % 3
    found = hidden(lengths, how, epochs, numbers)
    for i, (part, count) in enumerate(zip(found, lengths, strict=True)):
        others = count - 1
        low, high = (max(0, min(max(np.rint(share * others), 1), others - 1)) for share in shares)
        assert len(part) == count and low <= part.sum() <= high
        assert (part == hidden([count], how, epochs[i], numbers[i])[0]).all()  # whatever is with it


def test_between_the_least_and_the_most_every_share_is_as_frequent() -> None:
    counts = np.array([one.sum() for one in hidden([101] * 4000, Hiding(0.2, 0.8), numbers=np.arange(4000))])
    assert counts.min() == 20 and counts.max() == 80
    assert counts.mean() == pytest.approx(50, abs=1.5) and counts.std() == pytest.approx(60 / 12**0.5, abs=1)


def test_what_is_hidden_is_random_and_changes_with_seed_epoch_and_object() -> None:
    keys = [(seed, epoch, number) for seed in (1, 2) for epoch in range(40) for number in range(20)]
    patterns = np.array([hidden([61], Hiding(0.3, 0.3, seed=seed), epoch, number)[0][1:] for seed, epoch, number in keys])
    assert len({p.tobytes() for p in patterns}) == len(keys)
    assert np.abs(patterns.mean(0) - 0.3).max() < 5 * np.sqrt(0.21 / len(keys))  # no place is preferred
    together = np.corrcoef(patterns.T)
    assert np.abs(together[~np.eye(60, dtype=bool)]).max() < 0.15  # nor any pair


PARTS = np.array([-1, -1, -1, 0, 0, 0, 0, 1, 1, 2])  # the object's own token and its scalars, and three segments


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_whole_parts_are_hidden_of_the_share_asked(share: float) -> None:
    how, count = Hiding(0.3, 0.3, share), 3000
    found = np.array(hidden([10] * count, how, numbers=np.arange(count), parts=[PARTS] * count))
    wholes = [np.flatnonzero((PARTS == part) & (np.arange(10) > 0)).tolist() for part in (-1, 0, 1, 2)]
    which = np.array([wholes.index(one) if (one := np.flatnonzero(row).tolist()) in wholes else -1 for row in found])
    by_share = (found.sum(1) == 3) & (which < 0)
    assert ((which >= 0) | by_share).all()
    assert np.mean(which >= 0) == pytest.approx(share, abs=0.03)
    if share:
        np.testing.assert_allclose(np.bincount(which[which >= 0]) / (which >= 0).sum(), 0.25, atol=0.06)  # any as often
    alone = Hiding(0.3, 0.3)
    plain = np.array(hidden([10] * count, alone, numbers=np.arange(count), parts=[PARTS] * count))
    np.testing.assert_array_equal(found[by_share], plain[by_share])  # of the others it is as without


def test_of_whole_parts_a_share_is_hidden() -> None:
    how, count = Hiding(0.05, 0.95, 1.0), 2000
    found = np.array(hidden([10] * count, how, numbers=np.arange(count), parts=[PARTS] * count))
    whole = np.array([[row[PARTS == part][-1] for part in (-1, 0, 1, 2)] for row in found])
    assert all((row[(PARTS == part) & (np.arange(10) > 0)] == on).all() for row, of in zip(found, whole, strict=True)
               for part, on in zip((-1, 0, 1, 2), of, strict=True))  # fmt: skip
    counts = np.bincount(whole.sum(1), minlength=5) / count
    assert counts[0] == counts[4] == 0 and (counts[1:4] > 0.15).all()
    assert len(np.unique(whole, axis=0)) == 14  # every set but none and all


@pytest.mark.parametrize("parts", [[-1], [-1, 0], [-1, -1, -1], [-1, 3, 3, 3, 3]])
def test_an_object_is_never_hidden_as_a_whole(parts: list[int]) -> None:
    for number in range(50):
        found = hidden([len(parts)], Hiding(0.5, 0.5, 1.0), numbers=number, parts=[np.array(parts)])[0]
        others = len(parts) - 1
        assert found.sum() == max(0, min(max(np.rint(0.5 * others), 1), others - 1))


def tokenized(ones: Sequence[Observation], how: Hiding, epoch: int = 0) -> Batch:
    return tokenize(packed(ones, epoch), WORDS, how)


def by_object(of: Batch) -> dict[int, bytes]:
    return {n: part.numpy().tobytes() for n, part in zip(of.objects.tolist(), of.hidden.split(of.lengths), strict=True)}


@settings(max_examples=20, deadline=None)
@given(numbers=st.lists(st.integers(0, 300), min_size=1, max_size=8, unique=True), shares=SHARES, whole=st.floats(0, 1))
def test_hiding_changes_no_token_and_never_an_object_s_own(numbers: list[int], shares: list[float], whole: float) -> None:
    ones = [thing(n) for n in numbers]
    plain, made = tokenize(packed(ones), WORDS), tokenized(ones, Hiding(*shares, whole))
    assert not plain.hidden.any() and not made.hidden[made.kind == 0].any()
    for part, length in zip(made.hidden.split(made.lengths), made.lengths, strict=True):
        assert (0 < part.sum() < length - 1) if length > 3 else part.sum() < max(1, length - 1)
    rows = made.order[made.hidden]
    hidden_names = made.scalars.name[rows[rows < len(made.scalars.name)]].tolist()
    assert not {0, WORDS.names.index(PERIOD)} & set(hidden_names)
    for name, x in tensors(plain).items():
        if name != "hidden":
            assert x.numpy().tobytes() == tensors(made)[name].numpy().tobytes()


def test_in_a_batch_it_is_a_function_of_seed_epoch_and_object_alone() -> None:
    ones, how = [thing(n) for n in range(40)], Hiding(0.2, 0.7, 0.3, 5)
    found = by_object(tokenized(ones, how))
    assert found == by_object(tokenized(ones, how))
    few = by_object(tokenized(ones[:9], how))  # the numbers are the same, the company isn't
    assert few == {n: found[n] for n in range(9)}
    many = [n for n, part in found.items() if len(part) > 8]
    for other in (tokenized(ones, Hiding(0.2, 0.7, 0.3, 6)), tokenized(ones, how, epoch=1)):
        assert np.mean([by_object(other)[n] != found[n] for n in many]) > 0.9


def test_a_whole_part_of_a_batch_is_one_spectrum_one_band_or_all_scalars() -> None:
    ones = [spectrum(n, ("log10", "linear"), 40, curves=(curve(n, 12), curve(n, 9, "R")), scalars=star(n).scalars)
            for n in range(60)]  # fmt: skip
    made = tokenized(ones, Hiding(0.2, 0.2, 1.0))
    seen = set()
    names = made.scalars.name
    start = 0
    for length in made.lengths:
        rows = made.order[start : start + length][made.hidden[start : start + length]]
        scalars, spectra = len(names), len(made.spectra.values)
        group = np.digitize(rows.numpy(), [scalars, scalars + spectra])
        assert len(set(group.tolist())) == 1
        if group[0] == 0:
            assert sorted(names[rows].tolist()) == np.flatnonzero(WORDS.kinds == SCALARS).tolist()  # none of a curve's own
            seen.add("scalars")
        elif group[0] == 1:
            steps = made.spectra.coordinates[rows - scalars, 0].diff()
            within = made.spectra.coordinates[rows - scalars, 0].min() < 3750  # the linear arm, which begins within a patch
            assert len(rows) == (6 if within else 5) and (steps > 0).all()  # one arm's patches, in order
            seen.add("spectrum")
        else:
            bands = made.curves.band[rows - scalars - spectra].unique().tolist()
            assert len(bands) == 1
            seen.add(WORDS.bands[bands[0]])
        start += length
    assert seen == {"scalars", "spectrum", *WORDS.bands}


def test_nothing_is_hidden_where_there_is_one_thing_or_the_most_is_0() -> None:
    one = spectrum(0, (), scalars={"teff": (5000.0, 10.0)})
    assert not tokenized([one, one], Hiding(0.5, 0.9, 1.0)).hidden.any()
    assert not tokenized([star(1), light_curve(2, 30)], Hiding(0.0, 0.0, 0.0)).hidden.any()


def test_a_single_spectrum_is_never_hidden_as_a_whole() -> None:
    """Its scale and its signal to noise are no measurement beside it; with the most 0 whole parts alone are hidden."""
    ones = [spectrum(n, pixels=100) for n in range(30)]
    assert not tokenized(ones, Hiding(0.0, 0.0, 1.0)).hidden.any()
    made = tokenized(ones, Hiding(0.5, 0.5, 1.0))
    parts = zip(made.hidden.split(made.lengths), made.lengths, strict=True)
    assert all(0 < int(part.sum()) < length - 3 for part, length in parts)
    assert tokenized([star(n) for n in range(9)], Hiding(0.0, 0.0, 1.0)).hidden.any()


def test_whole_parts_of_scalars_alone_are_series_and_single_ones() -> None:
    of = Vocabulary(8, 4, measured=("bp_0", "bp_1", "bp_2", "j_h", "rp_0", "rp_1", "teff"))
    names = np.array(of.names)
    ones = [spectrum(n, (), scalars={name: (1.0, 0.1) for name in of.measured}) for n in range(300)]
    seen = set()
    for shares, count in (((0.5, 0.5), {2}), ((0.1, 0.9), {1, 2, 3})):
        made = tokenize(packed(ones, of=of), of, Hiding(*shares, 1.0))
        for part, rows in zip(made.hidden.split(made.lengths), made.order.split(made.lengths), strict=True):
            hidden = set(names[made.scalars.name[rows[part]].numpy()].tolist())
            whole = {name.rstrip("0123456789") for name in hidden}
            assert hidden == {name for name in of.measured if name.rstrip("0123456789") in whole} and len(whole) in count
            seen.add((shares, len(whole)))
    assert len(seen) == 4
    assert {name: of.series[i] for i, name in enumerate(of.names) if name[1:3] == "p_"} == {
        **{f"bp_{k}": of.series[of.names.index("bp_0")] for k in range(3)},
        **{f"rp_{k}": of.series[of.names.index("rp_0")] for k in range(2)}}  # fmt: skip
    beside = [spectrum(n, pixels=100, scalars=ones[n].scalars) for n in range(30)]
    made = tokenize(packed(beside, of=of), of, Hiding(0.5, 0.5, 1.0))
    for part, rows in zip(made.hidden.split(made.lengths), made.order.split(made.lengths), strict=True):
        hidden = rows[part]
        of_scalars = hidden[hidden < len(made.scalars.name)]
        assert len(of_scalars) in (0, len(of.measured))  # beside a spectrum they are one part
