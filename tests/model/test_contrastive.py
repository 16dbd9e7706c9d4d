"""The agreement of the summaries of several kinds of measurement of one object."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from hpcspec.model.attention import segments
from hpcspec.model.unified import Encoded, Unified
from hpcspec.stream.batch import Batch
from hpcspec.stream.vocabulary import KINDS
from hpcspec.surveys.observation import Observation
from tests.making import batch, curve, spectrum, star
from tests.model.small import BY_KIND, OBJECTS, made, randomised

KIND_PAIRS = list(combinations(range(1, len(KINDS)), 2))
SINGLE = [*BY_KIND["spectra"], *BY_KIND["curves"], *BY_KIND["scalars"]]


def agreement(model: Unified, given: Batch) -> torch.Tensor:
    return model._agreement(given, model.embed(given))


@torch.no_grad()
def by_definition(model: Unified, given: Batch) -> float:
    """Over the pairs of kinds, how surely each of an object's two summaries picks the other among those of all objects."""
    total = 0.0
    for pair, kinds in enumerate(KIND_PAIRS):
        x, y = (model.summary_of(given, kind).double() for kind in kinds)
        both = [i for i in range(len(given)) if not (x[i].isnan().any() or y[i].isnan().any())]
        temperature = max(model.log_temperature[pair].exp().item(), 0.01)
        if len(both) < 2:
            continue
        for one, other in ((x, y), (y, x)):
            for i in both:
                scores = torch.stack([one[i] @ other[j] for j in both]) / temperature
                total += 0.5 * float(torch.logsumexp(scores, 0) - scores[both.index(i)]) / len(both)
    return total


@pytest.mark.parametrize("log_temperature", [(-2.65, -2.65, -2.65), (0.0, -1.0, -9.0)])
def test_it_is_the_symmetric_cross_entropy_of_the_pairs(log_temperature: tuple[float, ...]) -> None:
    model = randomised(made())
    model.log_temperature.data = torch.tensor(log_temperature, dtype=torch.float64)
    for given in (batch(OBJECTS), batch([star(i, 24 + 8 * i, 6 + 3 * i) for i in range(6)]), batch(OBJECTS[:2])):
        wanted = by_definition(model, given)
        assert agreement(model, given).item() == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert wanted == 0  # one object alone agrees with nothing


def test_with_something_hidden_it_is_of_what_is_seen() -> None:
    model, given = randomised(made()), batch([star(i, 40, 20) for i in range(6)], mask=0.5)
    found = model(given, 0.0, 0.5)["loss_contrastive"]
    assert found.item() == pytest.approx(0.5 * by_definition(model, given.take(~given.hidden)), rel=1e-3)


def test_only_objects_with_several_kinds_count() -> None:
    model, ones = randomised(made()), [star(1), star(2, 24), OBJECTS[6], OBJECTS[7]]
    wanted = agreement(model, batch(ones))
    assert wanted > 0.1
    for more in (SINGLE, SINGLE[:1], SINGLE[4:6]):
        torch.testing.assert_close(agreement(model, batch([*more, *ones])), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ones", [SINGLE, SINGLE[:1], [star(1)], [star(1), *SINGLE], [OBJECTS[6], OBJECTS[7]]])
def test_without_two_objects_of_the_same_kinds_it_is_0_and_has_a_gradient(ones: list[Observation]) -> None:
    model = made().train()
    found = agreement(model, batch(ones))
    assert found == 0
    found.backward()
    assert model.project.weight.grad is not None and model.log_temperature.grad is not None
    assert all(not p.grad.isnan().any() for p in model.parameters() if p.grad is not None)


def test_an_object_without_a_kind_is_compared_in_those_that_it_has() -> None:
    """Two pairs of kinds of two objects each: the sum of both."""
    model = randomised(made())
    with_curves = [spectrum(i, pixels=24 + 8 * i, curves=(curve(i, 9 + i),)) for i in (1, 2)]
    with_scalars = [spectrum(i, pixels=24 + 8 * i, scalars={"teff": (4900.0 + 50 * i, 9.0)}) for i in (3, 4)]
    parts = [agreement(model, batch(ones)) for ones in (with_curves, with_scalars)]
    torch.testing.assert_close(agreement(model, batch(with_curves + with_scalars)), parts[0] + parts[1], rtol=1e-4, atol=1e-5)


def aligned(model: Unified, monkeypatch: pytest.MonkeyPatch) -> Unified:
    """A model whose summaries are the means of the tokens that it is given."""

    def mean(encoded: Encoded, _: torch.Tensor) -> torch.Tensor:
        lengths = encoded.packing.lengths
        found = torch.zeros(len(lengths), encoded.tokens.shape[1])
        return F.normalize(found.index_add_(0, segments(lengths, torch.device("cpu")), encoded.tokens), dim=1)

    monkeypatch.setattr(model, "_transform", Encoded)
    monkeypatch.setattr(model, "_shared", mean)
    return model


def test_it_is_about_0_where_summaries_agree_perfectly_and_large_where_they_are_exchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, given = aligned(made(), monkeypatch), batch([star(i, 24 + 8 * (i % 3), 6 + i) for i in range(7)])
    owner = segments(given.lengths, torch.device("cpu"))
    own = F.one_hot(owner, 32).float()
    assert 0 < model._agreement(given, own) < 1e-4
    neighbour = F.one_hot((owner + (given.kind == 2)) % 7, 32).float()  # the light curves say another object
    sharp = 1 / model.log_temperature[0].exp().item()
    assert model._agreement(given, neighbour).item() == pytest.approx(2 * sharp, rel=1e-3)  # of two of the three pairs
    assert 1 < model._agreement(given, torch.ones(len(owner), 32)) / torch.tensor(7.0).log() < 3.001  # chance


def test_the_temperatures_are_learned_and_bounded() -> None:
    model, given = made(), batch([star(i, 40, 12) for i in range(4)])
    model.log_temperature.data.fill_(-20.0)
    assert torch.isfinite(agreement(model, given))
    model.log_temperature.data.fill_(-1.0)
    agreement(model, given).backward()
    assert model.log_temperature.grad is not None and (model.log_temperature.grad != 0).all()
