from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hpcspec.config_files import config_folder, load
from hpcspec.model.unified import Answers, Questions, Unified, likelihood
from hpcspec.model.views import over
from hpcspec.stream.batch import Batch
from hpcspec.stream.tokens import Hiding, tokenize
from hpcspec.stream.vocabulary import KINDS, Vocabulary
from tests.making import WORDS, batch, curve, packed, spectrum, star
from tests.model.small import BY_KIND, OBJECTS, SMALL, made, randomised

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
LOSSES = {"loss", "loss_spectra", "loss_curves", "loss_scalars", "loss_summary", "loss_contrastive"}


@pytest.fixture
def model() -> Unified:
    return made()


def group_rows(given: Batch, group: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(t,) bool of the tokens of a group: hidden, and visible but for the objects' own."""
    hidden, own = torch.zeros(2, len(given.order), dtype=torch.bool)
    hidden[given.order], own[given.order] = given.hidden, given.kind == 0
    sizes = [len(g[0]) for g in given.groups]
    place = ("scalars", "spectra", "curves").index(group)
    return hidden.split(sizes)[place], ~(hidden | own).split(sizes)[place]


def with_values(given: Batch, group: str, change: Callable[[torch.Tensor], torch.Tensor], which: torch.Tensor) -> Batch:
    """The batch with changed values of those tokens of a group."""
    of = getattr(given, group)
    name = "value" if group == "scalars" else "values"
    values = getattr(of, name).clone()
    values[which] = change(values[which])
    return replace(given, **{group: of._replace(**{name: values})})


def shifted(x: torch.Tensor) -> torch.Tensor:
    return x + 0.3 + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(3))


def losses(model: Unified, given: Batch, share: float = 0.25, contrastive: float = 0.1,
           halves: float = 0.0) -> dict[str, torch.Tensor]:  # fmt: skip
    torch.manual_seed(7)
    return model(given, share, contrastive, halves=halves)


def answers(model: Unified, given: Batch, share: float) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """What the decoder answers, with means and log variances, and the losses."""
    seen: list[torch.Tensor] = []
    plain = Unified.answer

    def recorded(*arguments: object) -> Answers:
        found = plain(model, *arguments)  # type: ignore[arg-type]
        seen.extend(x.detach() for pair in found for x in pair)
        return found

    model.answer = recorded  # type: ignore[method-assign, assignment]
    return seen, losses(model, given, share)


def test_an_object_doesn_t_depend_on_the_others_nor_on_their_order() -> None:
    model = randomised(made())
    results = []
    for chosen in ([*range(10)], [6, 2, 9, 4, 0, 8, 1, 5, 7, 3], *([i] for i in range(10))):
        given = batch([OBJECTS[i] for i in chosen])
        encoded = model.encode(given)
        tokens, alone = encoded.tokens.split(encoded.packing.lengths), [model.summary_of(given, kind) for kind in (1, 2, 3)]
        for place, number in enumerate(given.objects.tolist()):
            found = (tokens[place], model.summary(encoded)[place], *(x[place] for x in alone))
            results.append((chosen[number], found))
    assert len({tuple(found[1].tolist()) for _, found in results[:10]}) == 10
    for number, found in results:
        for one, together in zip(found, next(of for i, of in results if i == number), strict=True):
            loose = {"rtol": 1e-5, "atol": 1e-6} if one.dtype == torch.float32 else CLOSE
            torch.testing.assert_close(one, together, equal_nan=True, **loose)


@pytest.mark.parametrize("group", ["scalars", "spectra", "curves"])
def test_the_order_of_an_object_s_tokens_doesn_t_matter_but_what_they_are_does(group: str) -> None:
    model, given = randomised(made()), batch([star(3, 60, 30)])
    turned = torch.arange(len(given.order)).flip(0)
    moved = replace(given, order=given.order[turned], kind=given.kind[turned])
    summary, same = (model.summary(model.encode(b)) for b in (given, moved))
    torch.testing.assert_close(summary, same, **CLOSE)
    of = getattr(given, group)
    for name in {"scalars": ["name"], "spectra": ["coordinates"], "curves": ["times", "phases", "band"]}[group]:
        misplaced = replace(given, **{group: of._replace(**{name: getattr(of, name).flip(0)})})
        assert (summary - model.summary(model.encode(misplaced))).abs().max() > 1e-4, name


def test_the_order_of_the_epochs_of_a_token_doesn_t_matter_nor_does_what_is_no_epoch() -> None:
    model, given = randomised(made()), batch([star(3, 16, 13)])
    curves = given.curves
    there = torch.isfinite(curves.sigma)
    assert not there.all()
    turned = curves._replace(**{name: getattr(curves, name).flip(1) for name in ("values", "sigma", "times", "phases")})
    absent = curves._replace(values=torch.where(there, curves.values, 5.0), times=torch.where(there, curves.times, 77.0))
    wanted = model.encode(given).tokens
    for other in (turned, absent):
        torch.testing.assert_close(model.encode(replace(given, curves=other)).tokens, wanted, **CLOSE)


@pytest.mark.parametrize("group", ["scalars", "spectra", "curves"])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_hidden_values_are_targets_only(group: str, share: float) -> None:
    given = batch(OBJECTS, mask=0.5)
    hidden, visible = group_rows(given, group)
    assert hidden.any() and visible.any()
    seen, found = answers(made(), given, share)
    seen_changed, found_changed = answers(made(), with_values(given, group, shifted, hidden), share)
    assert len(seen) == 6 * (1 + (share > 0)) and set(found) == (LOSSES if share else LOSSES - {"loss_summary"})
    assert all(torch.equal(a, b) for a, b in zip(seen, seen_changed, strict=True))
    for name, loss in found.items():
        assert (loss != found_changed[name]) == (name in ("loss", f"loss_{group}", "loss_summary")), name
    seen_changed, found_changed = answers(made(), with_values(given, group, shifted, visible), share)
    assert not torch.equal(seen[0], seen_changed[0])  # the visible ones do matter
    assert found["loss_contrastive"] != found_changed["loss_contrastive"]


def test_neither_errors_of_hidden_tokens_nor_their_names_reach_the_encoder() -> None:
    given = batch(OBJECTS, mask=0.5)
    seen, _ = answers(made(), given, 1.0)
    scalars, spectra, curves = (group_rows(given, g)[0] for g in ("scalars", "spectra", "curves"))
    sigma = torch.where(curves[:, None] & torch.isfinite(given.curves.sigma), 2 * given.curves.sigma, given.curves.sigma)
    other = replace(given, scalars=given.scalars._replace(error=torch.where(scalars, 9.0, given.scalars.error)),
                    spectra=given.spectra._replace(sigma=torch.where(spectra[:, None], 3.0, given.spectra.sigma)),
                    curves=given.curves._replace(sigma=sigma))  # fmt: skip
    seen_changed, _ = answers(made(), other, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(seen, seen_changed, strict=True))


def test_what_is_seen_sets_the_unit_of_a_spectrum(model: Unified) -> None:
    """A hidden part that is brighter or fainter changes nothing of how the seen one is given."""
    given = tokenize(packed([spectrum(n, ("log10", "linear"), 96) for n in range(6)]), WORDS, Hiding(0.5, 0.5, 1.0))
    scaled = over(given, torch.tensor([0.4, 0.7, 1.0, 1.5, 2.0, 2.5]))
    assert not torch.equal(scaled.spectra.values, given.spectra.values)
    found = []
    for one in (given, scaled):
        torch.manual_seed(1)
        found.append({name: value.item() for name, value in losses(model, one).items()})
    assert found[1] == pytest.approx(found[0], abs=2e-3)


def test_bad_samples_of_hidden_tokens_don_t_enter_the_loss(model: Unified) -> None:
    given = batch(OBJECTS, mask=0.5)
    wanted = losses(model, given)["loss"]
    for group in ("spectra", "curves"):
        hidden = group_rows(given, group)[0]
        bad = torch.isinf(getattr(given, group).sigma[hidden])
        assert bad.any()
        for value in (7.0, 1e30):
            other = with_values(
                given, group, lambda x, b=bad, v=value: torch.where(b if x.ndim == 2 else b[..., None], v, x), hidden
            )
            assert torch.equal(losses(model, other)["loss"], wanted)
            assert all(torch.isfinite(g).all() for g in gradients(model, other))


def gradients(model: Unified, given: Batch) -> list[torch.Tensor]:
    model.zero_grad()
    losses(model, given)["loss"].backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mask", [0.0, 0.5])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_gets_a_gradient(checkpointing: bool, mask: float) -> None:
    model = made(checkpointing=checkpointing).train()
    losses(model, batch(OBJECTS, mask=mask), halves=0.1)["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


@pytest.mark.parametrize("kind", BY_KIND)
@pytest.mark.parametrize("mask", [0.0, 0.5])
def test_whatever_kinds_there_are_all_parameters_take_part_and_the_losses_are_finite(kind: str, mask: float) -> None:
    """…so that ranks whose batches differ do the same."""
    model = made().train()
    found = losses(model, batch(BY_KIND[kind], mask=mask), halves=0.1)
    assert set(found) == LOSSES | {"loss_halves"}
    found["loss"].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
    assert all(torch.isfinite(x) for x in found.values())
    if kind != "all":
        assert [found[f"loss_{k}"].item() == 0 for k in KINDS[1:]] == [not (k == kind or k == "scalars") for k in KINDS[1:]]


def test_activation_checkpointing_changes_no_gradient(model: Unified) -> None:
    given = batch(OBJECTS, mask=0.5)
    results = []
    for model.activation_checkpointing in (False, True):
        results.append(gradients(model.train(), given))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_loss_is_the_sum_of_its_parts_with_their_weights(model: Unified) -> None:
    given = batch(OBJECTS, mask=0.5)
    torch.manual_seed(7)
    found = model(given, 1.0, 0.3, 2.0)
    torch.manual_seed(7)
    plain = model(given, 1.0, 1.0, 1.0)
    for name, factor in (("spectra", 2), ("curves", 2), ("scalars", 2), ("summary", 2), ("contrastive", 0.3)):
        torch.testing.assert_close(found[f"loss_{name}"], factor * plain[f"loss_{name}"])
    torch.testing.assert_close(found["loss"], sum(v for k, v in found.items() if k != "loss"))
    assert set(model(given)) == LOSSES - {"loss_summary", "loss_contrastive"}
    assert set(model(given, 0.5, 0.1, 0.0)) == {"loss", "loss_contrastive"}


def test_with_nothing_hidden_everything_is_asked_for(model: Unified) -> None:
    given = batch(OBJECTS)
    seen, _ = answers(model, given, 0.0)
    own = int((given.kind == 0).sum())
    counts = [len(given.scalars.name) - own, len(given.spectra.values), int(torch.isfinite(given.curves.sigma).sum())]
    assert [len(x) for x in seen[::2]] == counts


@pytest.mark.parametrize("residual", [0.0, 0.3, -2.0, 8.0])
def test_the_likelihood_is_the_gaussian_one(residual: float) -> None:
    torch.manual_seed(0)
    log_variance, sigma = torch.randn(50, 4), torch.rand(50, 4) + 0.1
    sigma[::3, 1] = torch.inf
    variance = log_variance.exp() + torch.where(torch.isinf(sigma), 1, sigma) ** 2
    mean = torch.randn(50, 4)
    target = mean + residual * variance.sqrt()
    terms = 0.5 * ((target - mean) ** 2 / variance + variance.log())
    wanted = terms[torch.isfinite(sigma)].mean()
    torch.testing.assert_close(likelihood(mean, log_variance, target, sigma), wanted)
    normal = torch.distributions.Normal(mean, variance.sqrt()).log_prob(target)[torch.isfinite(sigma)]
    torch.testing.assert_close(wanted, -normal.mean() - 0.5 * math.log(2 * math.pi))


def test_an_outlier_pulls_no_harder_than_ten_standard_deviations() -> None:
    mean = torch.zeros(2, 1, requires_grad=True)
    target, zero = torch.tensor([[15.0], [1e6]]), torch.zeros(2, 1)
    likelihood(mean, zero, target, zero).backward()
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad, torch.full((2, 1), -5.0))  # −10 over two pixels
    assert likelihood(zero, zero, target, torch.full((2, 1), torch.inf)) == 0
    assert likelihood(zero[:0], zero[:0], target[:0], zero[:0]) == 0


ALONE = spectrum(1, (), scalars={"teff": (5000.0, 10.0)})
NOTHING = spectrum(1, (), scalars={"age": (5.0, 1.0)})


@pytest.mark.parametrize("objects", [[ALONE], [ALONE, ALONE], [NOTHING], [NOTHING, ALONE, OBJECTS[0]], OBJECTS[:1]])
def test_objects_with_nothing_to_hide_do_no_harm(model: Unified, objects: list) -> None:
    given = batch(objects, mask=0.5)
    found = losses(model.train(), given)
    found["loss"].backward()
    assert all(torch.isfinite(x) for x in found.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(model.eval().summary(model.encode(given))).all()


def test_dropout_is_for_training_only(model: Unified) -> None:
    given = batch(OBJECTS, mask=0.5)
    assert torch.equal(model(given)["loss"], model(given)["loss"])
    model.train()
    assert not torch.equal(model(given)["loss"], model(given)["loss"])


@pytest.mark.parametrize("path", sorted((config_folder() / "models").glob("*.yaml")), ids=lambda p: p.stem)
def test_each_named_model_has_the_size_its_comment_says(path: Path) -> None:
    claim = re.match(r"# (?:About )?([\d.]+) ([MB]) parameters", path.read_text())
    assert claim, "the first line says how many parameters the model has"
    config = load(config_folder() / "pipelines" / "demo.yaml", [f"model={path.stem}"]).model
    with torch.device("meta"):
        model = Unified(config, Vocabulary(config.patch, config.epochs, config.inputs))
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(float(claim[1]) * {"M": 1e6, "B": 1e9}[claim[2]], rel=0.15)


def test_a_short_training_lowers_every_loss_clearly() -> None:
    model = made(dropout=0.0)
    given, other = (tokenize(packed([star(i % 8, 96, 24) for i in some]), WORDS, Hiding(0.3, 0.7, 0.2))
                    for some in (range(24), range(8, 16)))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    before = [losses(model, b) for b in (given, other)]
    for _ in range(60):
        optimizer.zero_grad()
        model(given, 0.25, 0.1)["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    after = [losses(model, b) for b in (given, other)]
    for old, new in zip(before, after, strict=True):
        for name in LOSSES:
            assert new[name] < old[name] - 0.02, name
        assert new["loss"] < old["loss"] - 2


def test_answers_to_each_question_alone_are_those_to_all_together() -> None:
    model = randomised(made())
    given = batch([star(1), star(2, 40, 9), OBJECTS[9]])
    encoded = model.encode(given)
    n = len(given)
    names = torch.arange(1, len(WORDS.names)).repeat(n)
    where = torch.tensor([[4500.0, 1.0], [6100.0, 0.8]]).repeat(n, 1)
    times, phases, band = (
        torch.tensor([0.0, 3.5, 900.0]).repeat(n),
        torch.tensor([0.1, math.nan, 0.9]).repeat(n),
        torch.arange(3 * n) % 2,
    )
    owners = tuple(torch.arange(n).repeat_interleave(len(x) // n) for x in (names, where, times))
    asked = Questions(names, where, times, phases, band, owners)  # type: ignore[arg-type]
    together = model.answer(asked, encoded.tokens, encoded.packing)
    assert [tuple(x[0].shape) for x in together] == [(len(names), 1), (len(where), 8), (len(times), 1)]
    for group, count in enumerate([len(o) for o in owners]):
        for one in range(count):
            rows = [torch.tensor([one]) if g == group else torch.zeros(0, dtype=torch.long) for g in range(3)]
            alone = Questions(names[rows[0]], where[rows[1]], times[rows[2]], phases[rows[2]], band[rows[2]],
                              tuple(o[r] for o, r in zip(owners, rows, strict=True)))  # type: ignore[arg-type] # fmt: skip
            found = model.answer(alone, encoded.tokens, encoded.packing)
            for x, y in zip(found[group], together[group], strict=True):
                torch.testing.assert_close(x[0], y[one], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_the_summary_of_a_kind_is_of_unit_length_and_knows_no_other_kind(model: Unified, kind: int) -> None:
    given = batch(OBJECTS)
    found = model.summary_of(given, kind)
    has = torch.tensor([bool((k == kind).any()) for k in given.kind.split(given.lengths)])
    assert has.any() and not has.all()
    assert torch.isnan(found[~has]).all()
    torch.testing.assert_close(found[has].norm(dim=1), torch.ones(int(has.sum())))
    part = model.summary_of(given.take(given.kind == kind), kind)
    torch.testing.assert_close(part, found, equal_nan=True)
    other = given
    for group in ("scalars", "spectra", "curves"):
        kinds = torch.zeros(len(given.order), dtype=torch.long)
        kinds[given.order] = given.kind
        of_group = kinds.split([len(g[0]) for g in given.groups])[("scalars", "spectra", "curves").index(group)]
        other = with_values(other, group, shifted, of_group != kind)
    assert torch.equal(model.summary_of(other, kind).nan_to_num(9), found.nan_to_num(9))
    assert torch.isnan(model.summary_of(batch([NOTHING]), kind)).all()


def test_a_model_of_one_kind_reads_that_alone() -> None:
    for inputs, ones in ((("spectra",), [star(1), spectrum(2)]), (("curves",), [star(1), spectrum(2, (), curves=(curve(2),))])):
        of = Vocabulary(8, 4, inputs, WORDS.bands if "curves" in inputs else ())
        model = made(of=of)
        found = losses(model, batch(ones, of, 0.5))
        assert torch.isfinite(found["loss"]) and found["loss_contrastive"] == 0
    assert SMALL.inputs == KINDS[1:]
