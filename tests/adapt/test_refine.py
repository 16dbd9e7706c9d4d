"""Labels found by a fit of the mean spectra, and together with a head's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import Table

from hpcspec.adapt.heads import Task, make_task
from hpcspec.adapt.refine import LOG_VARIANCE, Refine, combined, scales_of
from hpcspec.adapt.relabel import Relabel
from hpcspec.adapt.train import adapt
from hpcspec.catalog.task import Predictor
from hpcspec.config import Config
from hpcspec.model.weights import load_weights, save_model, save_weights
from hpcspec.stream.batch import apart
from hpcspec.surveys.observation import Observation
from tests.adapt.toy_stars import ALONE, COUNT, PIXELS, SIGMA, arm, labels_of, one, stars
from tests.making import WORDS, batch, curve, shard, spectrum
from tests.model.small import made
from tests.tiny import contained

OFF = np.array([150.0, -0.3])  # K, dex: of the head


@pytest.fixture(scope="module")
def learned() -> tuple[Refine, Task]:
    rng = np.random.default_rng(1)
    labels = labels_of(rng)
    items, numbers = dict(apart(batch(stars(labels, rng)))), np.arange(COUNT)
    task = make_task(labels, numbers)
    refine = Relabel(items, labels, task, numbers, WORDS.kinds, ALONE).refine(ALONE)
    assert refine is not None
    return refine, task


def fitted(learned: tuple[Refine, Task], ones: list[Observation], truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and errors (n, 2) from a head's answer that is off."""
    refine, task = learned
    spread, center = np.array(task.spread), np.array(task.center)
    given = batch(ones)
    start = torch.tensor((truth + OFF - center) / spread, dtype=torch.float32)[given.objects.tolist()]
    with torch.no_grad():
        mean, log_variance = (x.numpy()[np.argsort(given.objects)] for x in refine(given, start))
    return mean * spread + center, np.exp(0.5 * log_variance) * spread


def bound(teff: float, logg: float) -> np.ndarray:
    """The smallest errors there can be (Cramér & Rao): of the fluxes, their slope known too."""
    step = np.array([5.0, 0.01])
    slopes = [(arm(*(np.array([teff, logg]) + d)).flux - arm(*(np.array([teff, logg]) - d)).flux) / (2 * 100 * s)
              for d, s in zip(np.diag(step), step, strict=True)]  # fmt: skip
    information = np.stack(slopes) @ np.stack(slopes).T / SIGMA**2
    return np.sqrt(np.diag(np.linalg.inv(information)))


def test_labels_of_stars_it_never_saw_are_found_as_well_as_noise_allows(learned: tuple[Refine, Task]) -> None:
    rng = np.random.default_rng(2)
    labels = labels_of(rng, 100)
    truth = np.stack(list(labels.values.values()), 1)
    found, error = fitted(learned, stars(labels, rng), truth)
    best = np.median([bound(*pair) for pair in truth], axis=0)
    scatter = 1.4826 * np.median(np.abs(found - truth), axis=0)
    assert (scatter < 2 * best).all() and (np.abs(np.median(found - truth, axis=0)) < 0.3 * best).all(), (scatter, best)
    inside = (np.abs(found - truth) < error).mean(0)
    assert (inside > 0.5).all() and (inside < 0.85).all(), inside


def test_a_small_velocity_changes_nothing(learned: tuple[Refine, Task]) -> None:
    """Where the long-wave sides of the lines are bad, a shift looks like another depth."""
    refine, x = learned[0], np.arange(PIXELS)
    truth = torch.tensor([[-0.5, 0.3], [0.6, -0.4]])
    lines = refine.model(truth.double())
    side = np.interp(np.arange(lines.shape[1]), x, ((x > 90) & (x < 110)) | ((x > 210) & (x < 230))) == 0
    weight = torch.tensor(SIGMA**-2 * side, dtype=torch.float32).expand_as(lines)
    found, errors = zip(*(refine._fit(lines + moved * torch.gradient(lines, dim=1)[0], weight, truth) for moved in (0, 0.3)),
                        strict=True)  # fmt: skip
    assert ((found[1] - found[0]).abs() < 0.3 * errors[0].sqrt()).all(), (found[1] - found[0]) / errors[0].sqrt()
    assert (errors[1] < 1.2 * errors[0]).all()  # it fits as well


def test_objects_it_can_tell_nothing_of_keep_the_heads_answer(learned: tuple[Refine, Task]) -> None:
    """Without a spectrum, with a spectrum elsewhere, with no good pixel; an object beside them is fitted as if alone."""
    truth = np.tile([[4900.0, 4.1]], (4, 1))
    bad = one(2, arm(4900, 4.1))
    (bad.arms[0].ivar)[:] = 0
    ones = [spectrum(0, ("log10",), 0, curves=(curve(0),)), spectrum(1, ("table",), 50), bad, one(3, arm(4900, 4.1))]
    refine, task = learned
    given = batch(ones)
    start = torch.tensor((truth + OFF - np.array(task.center)) / np.array(task.spread), dtype=torch.float32)
    with torch.no_grad():
        mean, log_variance = refine(given, start)
    order = given.objects.tolist()
    for number in (0, 2):
        np.testing.assert_array_equal(mean[order.index(number)], start[0])
        assert (log_variance[order.index(number)] == LOG_VARIANCE[1]).all()
    alone = fitted(learned, [one(0, arm(4900, 4.1))], truth[:1])[0]
    np.testing.assert_allclose(mean[order.index(3)].numpy() * np.array(task.spread) + np.array(task.center), alone[0], rtol=1e-5)


def test_two_answers_are_combined_by_their_errors() -> None:
    rng, n = np.random.default_rng(3), 2000
    true_errors = {"head": np.array([1.0, 0.2]), "fit": np.array([0.5, 0.4])}
    truth = rng.normal(0, 3, (n, 2))
    answers = {key: truth + rng.normal(0, 1, (n, 2)) * error for key, error in true_errors.items()}
    said = {key: np.tile(2 * np.log(0.3 * error), (n, 1)) for key, error in true_errors.items()}  # too sure, each alike
    scales = scales_of({key: truth - x for key, x in answers.items()}, said)
    mean, log_variance = combined(answers["head"], said["head"], answers["fit"], said["fit"], scales)
    best = (sum(error**-2.0 for error in true_errors.values())) ** -0.5
    np.testing.assert_allclose((mean - truth).std(0), best, rtol=0.06)
    np.testing.assert_allclose(np.exp(0.5 * log_variance[0]), best, rtol=0.06)
    silent = np.full((n, 2), LOG_VARIANCE[1])
    mean, _ = combined(answers["head"], said["head"], answers["head"], silent, scales)
    np.testing.assert_allclose(mean, answers["head"])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_catalogue_is_refined(tmp_path: Path) -> None:
    """From shards and a label table to what the released model says of stars that it never saw."""
    rng = np.random.default_rng(4)
    labels, model = labels_of(rng), made()
    shard(tmp_path / "sdss-00000.h5", stars(labels, rng))
    table = Table({"object_id": [f"object-{n:04d}" for n in range(COUNT)], **labels.values})
    table.write(tmp_path / "labels.csv")
    save_model(tmp_path / "weights.safetensors", model.config, model.vocabulary, model.state_dict())
    survey = {"labels": {"path": str(tmp_path / "labels.csv"), "parameters": {"teff": "teff", "logg": "logg"}}}
    new = labels_of(rng, 60)
    truth, given, off = np.stack(list(new.values.values()), 1), batch(stars(new, rng)), {}
    for refine in (False, True):
        settings = {"mode": "full", "steps": 40, "refine": refine, "held_out": 0.1, "calibration": 0.2, "baseline": "none"}
        config = Config.model_validate({"surveys": {"sdss": survey}, "adapt": settings})
        out = tmp_path / str(refine)
        with contained():
            task = adapt(config, [tmp_path / "sdss-00000.h5"], tmp_path / "weights.safetensors", out)
        assert task is not None and bool(task.refine) == refine
        found = Predictor(config, tmp_path / "weights.safetensors", out)(given)
        off[refine] = found["value"] - truth[given.objects]
    scatter = {refine: 1.4826 * np.median(np.abs(x), axis=0) for refine, x in off.items()}
    assert (scatter[True] < 0.5 * scatter[False]).all(), scatter
    inside = (np.abs(off[True]) < found["error"]).mean(0)
    assert (inside > 0.5).all() and (inside < 0.85).all(), inside


def test_it_is_saved_and_loaded(learned: tuple[Refine, Task], tmp_path: Path) -> None:
    refine, task = learned
    save_weights(tmp_path / "refine.safetensors", refine.state_dict())
    again = Refine(refine.shape)
    load_weights(tmp_path / "refine.safetensors", again)
    found = [fitted((of, task), [one(0, arm(4700, 3.4))], np.array([[4700.0, 3.4]])) for of in (again, refine)]
    np.testing.assert_array_equal(*found)
