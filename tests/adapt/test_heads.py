from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcspec.adapt.heads import Head, Output, Targets, Task, head_loss, make_task, targets
from hpcspec.adapt.labels import LabelSet
from hpcspec.adapt.report import inputs_of, physical, scatter, table
from tests.making import batch, dataset, spectrum
from tests.model.small import OBJECTS, made

N = 200
NO_Z = torch.zeros(0)


@pytest.fixture
def labels() -> LabelSet:
    """Stars with teff, galaxies without, three quasars; teff of the training objects is 5000 ± 300, with one outlier."""
    rng = np.random.default_rng(0)
    kinds = np.array(["STAR"] * 120 + ["GALAXY"] * 77 + ["QSO"] * 3)
    teff = np.where(kinds == "STAR", rng.normal(5000, 300, N), np.nan)
    teff[7] = 90_000
    rare = np.full(N, np.nan)
    rare[:9] = 1.0
    constant = np.full(N, 2.5)
    values = {"teff": teff, "rare": rare, "constant": constant}
    return LabelSet(kinds, values, {p: np.full(N, 60.0) for p in values})


@pytest.fixture
def task(labels: LabelSet) -> Task:
    return make_task(labels, np.arange(N))


def test_a_task_is_what_enough_training_objects_have(labels: LabelSet, task: Task) -> None:
    assert task.classes == ("GALAXY", "STAR") and task.parameters == ("teff", "constant")
    known = labels.values["teff"][np.isfinite(labels.values["teff"])]
    assert task.center[0] == np.median(known) and 250 < task.spread[0] < 350  # the outlier doesn't widen it
    assert (task.lowest[0], task.highest[0]) == (known.min(), 90_000)
    assert (task.center[1], task.spread[1]) == (2.5, 1.0)  # never a division by 0
    assert task.applies == (("STAR",), ("GALAXY", "STAR")) and task.error_scale == (1.0, 1.0)


def test_only_the_training_objects_define_the_task(labels: LabelSet) -> None:
    task = make_task(labels, np.arange(8, 120))
    assert task.classes == ("STAR",) and task.highest[0] < 10_000
    assert make_task(labels, np.arange(0)).parameters == ()


@pytest.mark.parametrize("limit", [float("inf"), 3.25])
def test_a_task_is_saved_exactly(task: Task, tmp_path: Path, limit: float) -> None:
    full = Task(**{**vars(task), "error_scale": (1.1, 1 / 3), "temperature": 0.7, "anomaly_limit": limit,
                   "report": {"classes": {"all": {"n": 3, "accuracy": 0.5}}}})  # fmt: skip
    full.save(tmp_path / "task.json")
    assert Task.load(tmp_path / "task.json") == full


def test_targets_are_standardised_and_unknown_ones_marked(labels: LabelSet, task: Task) -> None:
    numbers = np.array([0, 130, 199])
    found = targets(labels, task, numbers)
    assert found.object_class.tolist() == [1, 0, -1]  # a class left out is unknown
    teff = found.value[:, 0]
    assert teff[0] * task.spread[0] + task.center[0] == pytest.approx(labels.values["teff"][0], abs=0.01)
    assert torch.isnan(teff[1:]).all()
    torch.testing.assert_close(found.error, torch.tensor([[60 / task.spread[0], 60.0]] * 3, dtype=torch.float32))
    assert targets(labels, make_task(labels, numbers), numbers).value.shape == (3, 0)


def test_the_physical_values_undo_the_standardisation(labels: LabelSet, task: Task) -> None:
    found = targets(labels, task, np.arange(20))
    value, error, wide = physical(task, found.value.numpy(), np.log(np.full((20, 2), 0.25)))
    np.testing.assert_allclose(value[:, 0], labels.values["teff"][:20], rtol=1e-6)
    np.testing.assert_allclose(error, np.array([[0.5 * task.spread[0], 0.5]] * 20))
    np.testing.assert_allclose(wide, 1.96 * error)
    task = replace(task, error_scale=(2.0, 1.0), error_tail=(3.0, 2.5))
    _, error, wide = physical(task, found.value.numpy(), np.log(np.full((20, 2), 0.25)))
    np.testing.assert_allclose(error[0], [task.spread[0], 0.5])
    np.testing.assert_allclose(wide / error, np.array([[3.0, 2.5]] * 20))


def test_the_loss_is_cross_entropy_and_the_gaussian_one() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, mean, s, value = (torch.randn(6, k, generator=rng) for k in (3, 2, 2, 2))
    error = torch.rand(6, 2, generator=rng)
    kinds = torch.tensor([0, 2, -1, 1, 1, -1])
    known = kinds >= 0
    variance = s.exp() + error**2
    classes = -torch.log_softmax(logits, 1)[known, kinds[known]].mean()
    gaussian = 0.5 * ((value - mean) ** 2 / variance + variance.log()).sum() / 6
    torch.testing.assert_close(head_loss(Output(logits, mean, s), Targets(kinds, value, error, NO_Z)), classes + gaussian)


def test_unknown_labels_give_no_loss_and_no_gradient() -> None:
    logits, mean, s = (torch.randn(4, k, requires_grad=True) for k in (3, 2, 2))
    value = torch.full((4, 2), math.nan)
    value[1, 0] = 0.5
    kinds = torch.tensor([-1, -1, 2, -1])
    head_loss(Output(logits, mean, s), Targets(kinds, value, torch.zeros(4, 2), NO_Z)).backward()
    assert logits.grad is not None and mean.grad is not None and s.grad is not None
    assert logits.grad.abs().sum(1).nonzero()[:, 0].tolist() == [2]
    assert mean.grad.nonzero().tolist() == [[1, 0]] and s.grad.nonzero().tolist() == [[1, 0]]
    nothing = Targets(torch.full((4,), -1), torch.full((4, 2), math.nan), torch.zeros(4, 2), NO_Z)
    assert head_loss(Output(logits, mean, s), nothing).item() == 0


def test_a_head_reads_each_object_alone(task: Task) -> None:
    model, head = made().double(), Head(task, 32, 4, 0.1).double().eval()
    objects = OBJECTS[:5]
    together = batch(objects)
    *outputs, redshift = head(model.encode(together))
    assert [tuple(x.shape) for x in outputs] == [(5, 2), (5, 2), (5, 2)] and redshift is None
    for place, number in enumerate(together.objects.tolist()):
        for all_, one in zip(outputs, head(model.encode(batch([objects[number]])))[:3], strict=True):
            torch.testing.assert_close(all_[place], one[0], rtol=1e-8, atol=1e-9)
    assert not torch.equal(head.train()(model.encode(together))[0], head(model.encode(together))[0])  # dropout


def test_scatter_is_robust_and_about_the_median() -> None:
    residual = np.random.default_rng(1).normal(2, 0.5, 20_001)
    residual[:200] = 1e4
    found = scatter(residual)
    assert found["mad"] == pytest.approx(0.5, rel=0.04) and found["bias"] == pytest.approx(2, abs=0.02) and found["std"] > 100


def test_the_baseline_sees_the_pixels_of_each_object_in_the_order_asked(tmp_path: Path) -> None:
    index = dataset(tmp_path, [3, 3], pixels=50)
    numbers = np.array([4, 0, 5])
    wavelength, flux, scalars = inputs_of(index, numbers, ["none"])
    assert scalars.shape == (len(numbers), 1) and np.isnan(scalars).all()
    assert flux.shape == (3, 50) and np.all(np.diff(wavelength) > 0)
    for row, number in zip(flux, numbers.tolist(), strict=True):
        arm = spectrum(number, pixels=50).arms[0]
        good = arm.ivar > 0
        np.testing.assert_allclose(row[good], arm.flux[good] / np.median(np.abs(arm.flux[good])), rtol=1e-5)
    _, other, _ = inputs_of(index, numbers, [], np.array([3000.0, wavelength[25]]))
    assert np.isnan(other[:, 0]).all() and np.isfinite(other[:, 1]).all()


def test_the_table_shows_ours_beside_the_baseline() -> None:
    line = {"n": 9, "mad": 1.0, "std": 2.0, "bias": 0.0, "within_1_error": 0.68, "within_95": 0.9}
    beside = {"mad": 3.0, "std": 4.0, "bias": 0.1}
    report = {"baseline": "xgboost", "classes": {"all": {"n": 8, "accuracy": 0.75, "baseline_accuracy": 0.5}},
              "parameters": {"all": {"teff": {**line, "baseline": beside}, "logg": line}}}  # fmt: skip
    header, teff, logg, kinds = table(report)
    assert len(header) == len(teff) == len(logg) == len(kinds)
    assert teff == ["all", "teff", "9", "1", "2", "3", "4", "68 %"] and logg[5:7] == ["-", "-"]
    assert kinds[2:4] == ["8", "75.0 %"] and "50.0 %" in kinds
