"""Batches taken apart, put together, and in part."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcspec.stream.batch import GROUPS, Batch, Tokens, apart, collate
from hpcspec.surveys.observation import Observation
from tests.making import WORDS, assert_same, batch, tensors
from tests.stream.cases import light_curve
from tests.stream.definition import observations


def rows(of: Batch) -> list[list[tuple[int, tuple[bytes, ...]]]]:
    """Of each object the group and the content of each token, in order."""
    sizes = [len(group[0]) for group in of.groups]
    edges = np.cumsum([0, *sizes])
    found = []
    for place in of.order.tolist():
        g = int(np.searchsorted(edges, place, side="right")) - 1
        found.append((g, tuple(x[place - edges[g]].numpy().tobytes() for x in of.groups[g])))
    ends = np.cumsum([0, *of.lengths])
    return [found[a:b] for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]


ONES = st.lists(observations(), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(ones=ONES)
def test_taken_apart_and_collated_it_is_the_same(ones: list[Observation]) -> None:
    made = batch(ones)
    tokens = apart(made)
    assert list(tokens) == made.objects.tolist() and tuple(len(t) for t in tokens.values()) == made.lengths
    again = collate(list(tokens), list(tokens.values()), WORDS.kinds)
    assert again.lengths == made.lengths and again.objects.tolist() == made.objects.tolist()
    assert rows(again) == rows(made) and again.kind.tolist() == made.kind.tolist() and not again.hidden.any()
    for number, one in apart(again).items():
        assert_same(one, tokens[number])
    for name, x in tensors(made.to(torch.device("cpu"))).items():
        assert x.numpy().tobytes() == tensors(made)[name].numpy().tobytes()


def test_collated_objects_lie_by_their_lengths_and_keep_their_numbers() -> None:
    ones = apart(batch([make(n) for n in (9, 2, 5, 2)]))
    made = collate([30, 10, 20, 40], [ones[i] for i in range(4)], WORDS.kinds)
    assert made.objects.tolist() == [10, 40, 20, 30] and list(made.lengths) == sorted(made.lengths)
    for number, i in ((30, 0), (10, 1), (20, 2), (40, 3)):
        assert_same(apart(made)[number], ones[i])


def make(count: int) -> Observation:
    return light_curve(count, 3 * count)


@settings(max_examples=40, deadline=None)
@given(ones=ONES, data=st.data())
def test_a_part_has_the_tokens_to_keep_of_the_same_objects(ones: list[Observation], data: st.DataObject) -> None:
    made = batch(ones, mask=0.5)
    total = len(made.order)
    chosen = st.lists(st.booleans(), min_size=total, max_size=total)
    keep = torch.tensor(data.draw(chosen | st.sampled_from([[True] * total, [False] * total])), dtype=torch.bool)
    part = made.take(keep)
    flags = keep.split(made.lengths)
    assert part.lengths == tuple(int(f.sum()) for f in flags) and part.objects is made.objects and len(part) == len(made)
    wanted = [[token for token, k in zip(some, f.tolist(), strict=True) if k] for some, f in zip(rows(made), flags, strict=True)]
    assert rows(part) == wanted
    assert torch.equal(part.kind, made.kind[keep]) and torch.equal(part.hidden, made.hidden[keep])
    assert [type(group) for group in part.groups] == list(GROUPS)
    owner = torch.cat(part.owners)[part.order]
    assert owner.tolist() == np.repeat(np.arange(len(part)), part.lengths).tolist()


def test_tokens_are_counted_over_all_forms() -> None:
    one = apart(batch([make(4)]))[0]
    assert isinstance(one, Tokens) and len(one) == len(one.scalars.name) + len(one.curves.values) and not len(one.spectra.values)
