from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hpcspec.config import Model
from hpcspec.config_files import config_folder, load
from hpcspec.model.attention import Packing
from hpcspec.model.spectral import Sinusoids, SpectralModel, likelihood
from hpcspec.stream.batches import Batch
from tests.making import batch, spectrum

SMALL = Model(patch=8, width=32, layers=2, decoder_layers=2, heads=4, frequencies=16, dropout=0.1)
OBJECTS = [spectrum(i, ("log10", "linear")[: 1 + i % 2], 24 + 16 * (i % 4)) for i in range(7)]


@pytest.fixture
def model() -> SpectralModel:
    torch.manual_seed(0)
    return SpectralModel(SMALL).eval()


def randomised(model: SpectralModel) -> SpectralModel:
    """In double precision and with no weight near zero, so that nothing is equal by accident."""
    rng = torch.Generator().manual_seed(1)
    model = model.double()
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=rng, dtype=torch.float64)
    return model


def answers(model: SpectralModel, given: Batch, share: float) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """What the decoder answers, with means and log variances, and the losses."""
    seen: list[torch.Tensor] = []
    hook = model.answer.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    losses = model(given, share)
    hook.remove()
    return seen, losses


def test_an_object_doesn_t_depend_on_the_others_nor_on_their_order(model: SpectralModel) -> None:
    model = randomised(model)
    results = []
    for chosen in ([*range(7)], [6, 2, 4, 0, 1, 5, 3], *([i] for i in range(7))):
        given = batch([OBJECTS[i] for i in chosen], SMALL.patch)
        encoded = model.encode(given)
        tokens = encoded.tokens.split(encoded.packing.lengths)
        for place, number in enumerate(given.objects.tolist()):
            results.append((chosen[number], tokens[place], model.summary(encoded)[place]))
    assert len({tuple(s.tolist()) for _, _, s in results[:7]}) == 7
    for number, tokens, summary in results:
        _, tokens_together, summary_together = next(r for r in results if r[0] == number)
        torch.testing.assert_close(tokens, tokens_together, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(summary, summary_together, rtol=1e-9, atol=1e-10)


def test_the_order_of_an_object_s_tokens_doesn_t_matter_but_their_place_does(model: SpectralModel) -> None:
    model = randomised(model)
    given = batch(OBJECTS[3:4], SMALL.patch)
    turned = torch.arange(len(given.values)).flip(0)
    moved = replace(given, values=given.values[turned], coordinates=given.coordinates[turned])
    misplaced = replace(given, values=given.values[turned])
    summary, same, other = (model.summary(model.encode(b)) for b in (given, moved, misplaced))
    torch.testing.assert_close(summary, same, rtol=1e-9, atol=1e-10)
    assert (summary - other).abs().max() > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_hidden_values_are_targets_only(model: SpectralModel, share: float) -> None:
    given = batch(OBJECTS, SMALL.patch, mask=0.5)
    values = given.values.clone()
    values[given.hidden] += torch.randn(int(given.hidden.sum()), SMALL.patch, 3)
    seen, losses = answers(model, given, share)
    seen_changed, losses_changed = answers(model, replace(given, values=values), share)
    assert len(seen) == 1 + (share > 0)
    for a, b in zip(seen, seen_changed, strict=True):
        assert torch.equal(a, b)
    encoded, encoded_changed = (model.encode(b, ~b.hidden).tokens for b in (given, replace(given, values=values)))
    assert torch.equal(encoded, encoded_changed)
    assert all(losses[k] != losses_changed[k] for k in losses)
    values = given.values.clone()
    values[~given.hidden] += 0.1
    assert not torch.equal(seen[0], answers(model, replace(given, values=values), share)[0][0])  # the visible ones do matter


def test_bad_pixels_of_hidden_tokens_don_t_enter_the_loss(model: SpectralModel) -> None:
    given = batch(OBJECTS, SMALL.patch, mask=0.5)
    bad = given.hidden[:, None] & torch.isinf(given.sigma)
    assert bad.any()
    for value in (7.0, 1e30):
        values = torch.where(bad[..., None], torch.tensor(value), given.values)
        assert torch.equal(model(given, 0.25)["loss"], model(replace(given, values=values), 0.25)["loss"])
        assert torch.isfinite(torch.cat([g.flatten() for g in gradients(model, replace(given, values=values))])).all()


def gradients(model: SpectralModel, given: Batch) -> list[torch.Tensor]:
    model.zero_grad()
    model(given, 0.25)["loss"].backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_gets_a_gradient(checkpointing: bool) -> None:
    torch.manual_seed(0)
    model = SpectralModel(SMALL, activation_checkpointing=checkpointing)
    model(batch(OBJECTS, SMALL.patch, mask=0.5), 0.25)["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_activation_checkpointing_changes_no_gradient(model: SpectralModel) -> None:
    given = batch(OBJECTS, SMALL.patch, mask=0.5)
    results = []
    for model.activation_checkpointing in (False, True):
        torch.manual_seed(5)
        results.append(gradients(model.train(), given))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


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


SHORT = spectrum(1, pixels=5)


@pytest.mark.parametrize("objects", [OBJECTS[:1], [SHORT], [SHORT, SHORT, OBJECTS[0]]])
def test_objects_of_one_token_have_nothing_hidden_and_do_no_harm(model: SpectralModel, objects: list) -> None:
    given = batch(objects, SMALL.patch, mask=0.5)
    losses = model.train()(given, 0.25)
    losses["loss"].backward()
    assert all(torch.isfinite(x) for x in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    hidden = [int(h.sum()) for h in given.hidden.split(given.lengths)]
    assert hidden == [min(max(round(n / 2), 1), n - 1) for n in given.lengths]


def test_dropout_is_for_training_only(model: SpectralModel) -> None:
    given = batch(OBJECTS, SMALL.patch, mask=0.5)
    assert torch.equal(model(given, 0.25)["loss"], model(given, 0.25)["loss"])
    model.train()
    assert not torch.equal(model(given, 0.25)["loss"], model(given, 0.25)["loss"])


def test_wavelengths_stay_exact_in_bfloat16(model: SpectralModel) -> None:
    """bfloat16 has eight bits: at 1e4 Å it would round to 64 Å."""
    wavelength = torch.linspace(3600, 17000, 500)
    before = [m(wavelength) for m in model.modules() if isinstance(m, Sinusoids)]
    model.bfloat16()
    sinusoids = [m for m in model.modules() if isinstance(m, Sinusoids)]
    assert len(sinusoids) == 2 and all(m.frequencies.dtype == torch.float32 for m in sinusoids)
    for a, m in zip(before, sinusoids, strict=True):
        assert torch.equal(a, m(wavelength))
    losses = model(batch(OBJECTS, SMALL.patch, mask=0.5), 0.25)
    assert torch.isfinite(losses["loss"]) and losses["loss"].dtype == torch.float32


def test_neighbouring_pixels_of_an_apogee_spectrum_are_told_apart(model: SpectralModel) -> None:
    near = torch.tensor([[16000.0, 0.22], [16000.22, 0.22], [16000.0, 0.8]])
    x = model.embed_wavelength(near)
    assert (x[0] - x[1]).abs().max() > 1e-2 and (x[0] - x[2]).abs().max() > 1e-2


@pytest.mark.parametrize("path", sorted((config_folder() / "models").glob("*.yaml")), ids=lambda p: p.stem)
def test_each_named_model_has_the_size_its_comment_says(path: Path) -> None:
    claim = re.match(r"# (?:About )?([\d.]+) ([MB]) parameters", path.read_text())
    assert claim, "the first line says how many parameters the model has"
    config = load(config_folder() / "pipelines" / "demo.yaml", [f"model={path.stem}"]).model
    with torch.device("meta"):
        model = SpectralModel(config)
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(float(claim[1]) * {"M": 1e6, "B": 1e9}[claim[2]], rel=0.15)


def test_a_short_training_lowers_the_loss_clearly() -> None:
    torch.manual_seed(0)
    model = SpectralModel(SMALL.model_copy(update={"dropout": 0.0}))
    given = batch([spectrum(i, pixels=160) for i in range(16)], SMALL.patch, mask=0.5)
    other = batch([spectrum(i, pixels=160) for i in range(100, 116)], SMALL.patch, mask=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    before = [model(b, 0.25)["loss_hidden"].item() for b in (given, other)]
    for _ in range(60):
        optimizer.zero_grad()
        model(given, 0.25)["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    after = [model(b, 0.25)["loss_hidden"].item() for b in (given, other)]
    assert after[0] < before[0] - 1.0 and after[1] < before[1] - 0.8


def test_the_decoder_answers_each_query_of_an_object_alone(model: SpectralModel) -> None:
    model = randomised(model)
    given = batch(OBJECTS[:3], SMALL.patch)
    encoded = model.encode(given)
    queries = Packing(given.lengths)
    mean, log_variance = model.decode(given.coordinates, queries, encoded.tokens, encoded.packing)
    assert mean.shape == log_variance.shape == (len(given.values), SMALL.patch)
    last = torch.tensor([o - 1 for o in queries.offsets[1:]])
    alone, _ = model.decode(given.coordinates[last], Packing((1,) * 3), encoded.tokens, encoded.packing)
    torch.testing.assert_close(alone, mean[last], rtol=1e-5, atol=1e-6)
