"""Accuracy on held-out objects, beside a baseline trained and tested on the same objects."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from hpcspec.adapt.heads import Answers, Task, physical
from hpcspec.adapt.labels import LabelSet, label_names
from hpcspec.config import Config
from hpcspec.stream.batches import in_order
from hpcspec.stream.index import DataIndex

log = logging.getLogger(__name__)


def scatter(residual: np.ndarray) -> dict[str, float]:
    """Robust scatter 1.4826·MAD (about the median), plain standard deviation and median of residuals (n,)."""
    center = float(np.median(residual))
    return {"mad": float(1.4826 * np.median(np.abs(residual - center))), "std": float(residual.std()), "bias": center}


def inputs_of(index: DataIndex, numbers: np.ndarray, names: Sequence[str],
              grid: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """(wavelengths (m,), flux over its median (n, m) f4, scalars (n, k) f4): what a baseline sees, the spectra interpolated to
    the grid of the first that there is (a network here doesn't need that). NaN where no good pixel is near, or no scalar."""
    rows: dict[int, np.ndarray] = {}
    scalars = np.full((len(numbers), len(names)), np.nan, np.float32)
    place = {n: i for i, n in enumerate(numbers.tolist())}
    for some, objects in in_order(index, np.sort(numbers)):
        for i, number in enumerate(some.tolist()):
            arms = objects.arms(i)
            if grid is None and arms:
                grid = np.unique(np.concatenate([w for w, _, _ in arms]))
            scaled = [(w, f / (objects.columns["amplitude"][i] or 1.0), v) for w, f, v in arms]
            if any((v > 0).any() for _, _, v in scaled) and grid is not None:
                rows[number] = on_grid(scaled, grid).astype(np.float32)
            for k, name in enumerate(objects.scalar_names):
                if name in names:
                    scalars[place[number], names.index(name)] = objects.scalars[i, k, 0]
    grid = np.zeros(0) if grid is None else grid
    nothing = np.full(len(grid), np.nan, np.float32)
    return grid, np.stack([rows.get(n, nothing) for n in numbers.tolist()]), scalars


def on_grid(arms: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], grid: np.ndarray) -> np.ndarray:
    """Values of arms (wavelength, value, ivar) interpolated over their good pixels to wavelengths (m,), NaN outside them."""
    wavelength = np.concatenate([w[i > 0] for w, _, i in arms])
    value = np.concatenate([v[i > 0] for _, v, i in arms]).astype(np.float64)
    order = np.argsort(wavelength)
    return np.interp(grid, wavelength[order], value[order], left=np.nan, right=np.nan)


def _features(train: np.ndarray, test: np.ndarray, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The baseline's inputs: pixels that the training set has, or their 64 principal components."""
    covered = np.isfinite(train).mean(0) > 0.5
    train, test = train[:, covered], test[:, covered]
    if kind == "xgboost" or not covered.any():
        return train, test
    from sklearn.decomposition import PCA  # here and below: the catalogue's tasks, which come by this module, need none of it
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    count = min(64, *train.shape)
    pca = make_pipeline(SimpleImputer(strategy="median"), PCA(count, svd_solver="randomized", random_state=seed))
    return pca.fit_transform(train), pca.transform(test)


def baseline(
    config: Config, index: DataIndex, labels: LabelSet, task: Task, train: np.ndarray, test: np.ndarray
) -> dict[str, Any]:
    """XGBoost on pixels and scalars for each parameter and the class, per survey, trained on `train` and predicting `test`
    (numbers)."""
    from xgboost import XGBClassifier, XGBRegressor

    share = 0.1 if config.adapt.baseline == "xgboost" else 0.5  # of the inputs a tree may use: thousands of pixels, or components
    trees = {"n_estimators": 300, "learning_rate": 0.1, "max_depth": 5, "subsample": 0.8, "colsample_bytree": share,
             "tree_method": "hist", "n_jobs": config.adapt.threads, "random_state": config.seed}  # fmt: skip
    values = {p: np.full(len(test), np.nan) for p in task.parameters}
    classes = np.full(len(test), "", object)
    for survey in sorted(set(index.survey[test].tolist())):
        a, b = train[index.survey[train] == survey], np.flatnonzero(index.survey[test] == survey)
        if len(a) < 10:
            continue
        measured = {n for s in index.shards if s.survey == survey for n in s.scalar_names}
        names = sorted(measured - label_names(config.surveys))
        grid, pixels, scalars = inputs_of(index, a, names)
        _, other_pixels, other_scalars = inputs_of(index, test[b], names, grid)
        x, y = _features(pixels, other_pixels, config.adapt.baseline, config.seed)
        x, y = np.hstack([x, scalars]), np.hstack([y, other_scalars])
        for p in task.parameters:
            known = np.isfinite(labels.values[p][a])
            if known.sum() >= 10:
                values[p][b] = XGBRegressor(**trees).fit(x[known], labels.values[p][a][known]).predict(y)
        present = sorted(set(labels.object_class[a].tolist()) & set(task.classes))
        known = np.isin(labels.object_class[a], present)
        if len(present) > 1:
            codes = np.array([present.index(c) for c in labels.object_class[a][known].tolist()])
            classes[b] = np.array(present, object)[XGBClassifier(**trees).fit(x[known], codes).predict(y)]
        elif present:
            classes[b] = present[0]
    return {"values": values, "classes": classes.astype(str)}


def held_out_report(
    config: Config, index: DataIndex, labels: LabelSet, task: Task, parts: Any, answers: Answers
) -> dict[str, Any]:
    """Accuracy of the head, and of the baseline, on the held-out objects, over all and per survey.

    For each parameter: `mad`, `std`, `bias`, number of objects, and the share of true values within one error and within the
    95 % interval.
    """
    test = parts.test
    logits = answers.logits
    value, error, wide = physical(task, *answers.together(task))
    began = time.monotonic()
    other = None
    if config.adapt.baseline != "none":
        log.info("adapt: training the baseline (%s) on the same objects", config.adapt.baseline)
        other = baseline(config, index, labels, task, parts.train, test)
    surveys = sorted(set(index.survey[test].tolist()))
    groups = {"all": np.ones(len(test), bool)} | ({s: index.survey[test] == s for s in surveys} if len(surveys) > 1 else {})
    counts = {"train": len(parts.train), "calibration": len(parts.calibration), "held_out": len(parts.test)}
    out: dict[str, Any] = {"baseline": config.adapt.baseline, "baseline_seconds": time.monotonic() - began, "objects": counts}
    out["parameters"] = {g: {} for g in groups}
    out["classes"] = {}
    probability = softmax(logits / task.temperature, axis=1) if len(task.classes) > 1 else np.ones((len(test), len(task.classes)))
    for group, members in groups.items():
        for k, p in enumerate(task.parameters):
            truth = labels.values[p][test]
            known = members & np.isfinite(truth)
            if known.sum() < 5:
                continue
            residual = value[known, k] - truth[known]
            line: dict[str, Any] = {"n": int(known.sum()), **scatter(residual),
                    "within_1_error": float((np.abs(residual) <= error[known, k]).mean()),
                    "within_95": float((np.abs(residual) <= wide[known, k]).mean())}  # fmt: skip
            if other is not None and np.isfinite(other["values"][p][known]).all():
                line["baseline"] = scatter(other["values"][p][known] - truth[known])
            out["parameters"][group][p] = line
        known = members & np.isin(labels.object_class[test], task.classes)
        if len(task.classes) > 1 and known.sum() >= 5:
            truth = labels.object_class[test][known]
            predicted = np.array(task.classes)[probability[known].argmax(1)]
            out["classes"][group] = {"n": int(known.sum()), "accuracy": float((predicted == truth).mean())}
            if other is not None:
                out["classes"][group]["baseline_accuracy"] = float((other["classes"][known] == truth).mean())
    return out


def table(report: dict[str, Any]) -> list[list[str]]:
    """Rows (header first) of the accuracy on held-out objects, robust and plain scatter, and the baseline's if there is one."""
    other = report["baseline"]
    beside = [] if other == "none" else [f"{other} MAD", f"{other} std"]
    rows = [["survey", "quantity", "objects", "MAD", "std", *beside, "within 1 error"]]
    for group, lines in report["parameters"].items():
        for name, x in lines.items():
            both = [x, x.get("baseline", {})] if beside else [x]
            shown = [f"{y[k]:.4g}" if k in y else "-" for y in both for k in ("mad", "std")]
            rows.append([group, name, str(x["n"]), *shown, f"{100 * x['within_1_error']:.0f} %"])
        if group in report["classes"]:
            x = report["classes"][group]
            right = [f"{100 * x[k]:.1f} %" if k in x else "-" for k in ("accuracy", "baseline_accuracy")]
            rows.append([group, "class, correct", str(x["n"]), right[0], "", *([right[1], ""] if beside else []), ""])
    return rows
