"""Experiments of the spectral tokenizer's row: repeat observations, reconstruction, and one survey's spectrum from another's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d
from sklearn.decomposition import PCA

from hpcspec.errors import UserError
from hpcspec.evaluate import metrics, plots
from hpcspec.evaluate.baselines import Templates
from hpcspec.evaluate.inputs import NotMeasured, pixels
from hpcspec.evaluate.model import rows_of
from hpcspec.evaluate.report import Result
from hpcspec.evaluate.spec import Experiment
from hpcspec.evaluate.workspace import Workspace
from hpcspec.surveys.observation import Arm, Observation

GAPS, GAP = 6, 0.02  # stretches hidden in each arm, and the share of its pixels that one has
SMOOTH = 8  # pixels, σ
COMPONENTS = 30
SIGNAL = (5, 10, 20)  # median S/N of observations that repeats are counted for too
APART = 1000  # pixels: arms of one grid that begin further from each other are not asked for together
Modelled = tuple[np.ndarray, np.ndarray]  # flux and error (w,)
Expected = Callable[[Sequence[tuple[Observation, Arm]]], list[Modelled]]  # of objects, on the pixels of arms


def repeats(work: Workspace, said: Experiment, result: Result) -> None:
    """Whether the nearest neighbour of an observation is another of the same object, for all and for those of some signal to
    noise, sought among all. Uses data, runs, folders, match; the baseline `pca` is the first 100 principal components of the
    training set, or of these objects where there is none."""
    data = work.evaluation.data[said.data]
    samples = {folder: work.sample(said.data, folder) for folder in said.folders}
    keys = np.concatenate([s.column(said.match) for s in samples.values()])
    if not keys.size or np.unique(keys[keys != ""], return_counts=True)[1].max(initial=0) < 2:
        raise NotMeasured(f"no two observations in {', '.join(said.folders)} of {said.data} have the same {said.match}")
    keys = np.array([k or f"alone {i}" for i, k in enumerate(keys.tolist())])
    noise = np.array([one.sn_median for s in samples.values() for one in s.objects])
    _, back, count = np.unique(keys, return_inverse=True, return_counts=True)
    twice = count[back] > 1

    def found(method: str, vectors: np.ndarray, model: bool) -> None:
        for low in (0, *SIGNAL):
            of = noise >= low if low else np.ones(len(noise), bool)
            figures = {f"retrieval@{k}": metrics.retrieval(vectors, keys, k, of=of) for k in (1, 5)}
            if (of & twice).any():
                name = f"repeats with a median S/N of {low} or more" if low else "repeats"
                result.add(name, method, figures, int((of & twice).sum()), model)

    if "pca" in said.baselines:
        objects = [one for s in samples.values() for one in s.objects]
        try:
            train = pixels(work.sample(said.data, "train").objects)
        except NotMeasured:
            train = pixels(objects)
        seen = pixels(objects, train.grid)
        pca = PCA(min(100, len(train.flux) - 1), svd_solver="randomized", random_state=1, whiten=True).fit(train.filled())
        found("pca", pca.transform(np.where(np.isfinite(seen.flux), seen.flux, pca.mean_)), False)
    for run in said.runs:
        try:
            for seed in work.seeds(work.evaluation.runs[run].seeds):
                model = work.model(run, seed, {})
                tables = [model.catalogue(data.survey, work.folder(said.data, f), f"{said.data}-{f}") for f in said.folders]
                rows = [rows_of(t, s.ids) for t, s in zip(tables, samples.values(), strict=True)]
                if any((r < 0).any() for r in rows):
                    raise NotMeasured(f"the catalogue lacks objects of {said.data}")
                vectors = np.concatenate([np.asarray(t["embedding"])[r] for t, r in zip(tables, rows, strict=True)])
                found(run, vectors, True)
                if run == said.runs[0]:
                    classes = np.concatenate([s.classes for s in samples.values()])
                    name = plots.embedding_map(work.output / f"{result.name}-map.png", vectors, {"class": classes})
                    result.plots.append(name)
        except NotMeasured as reason:
            result.missing.append(f"{run}: {reason}")


def with_gaps(one: Observation, rng: np.random.Generator) -> tuple[Observation, list[np.ndarray]]:
    """The object with random stretches of each arm unseen, and where they are: (n,) bool for each arm."""
    arms, hidden = [], []
    for arm in one.arms:
        mask, size = np.zeros(len(arm.flux), bool), max(int(GAP * len(arm.flux)), 1)
        for start in rng.integers(0, max(len(arm.flux) - size, 1), GAPS):
            mask[start : start + size] = True
        arms.append(replace(arm, ivar=np.where(mask, np.float32(0), arm.ivar)))
        hidden.append(mask)
    return replace(one, arms=tuple(arms)), hidden


def smoothed(one: Observation, wavelength: np.ndarray) -> Modelled:
    """The object's own flux, smoothed with its weights over a few pixels, interpolated; the error is 0."""
    parts = []
    for arm in one.arms:
        weight = gaussian_filter1d(arm.ivar.astype(np.float64), SMOOTH)
        level = gaussian_filter1d(arm.ivar * arm.flux.astype(np.float64), SMOOTH) / np.maximum(weight, 1e-300)
        use = weight > 1e-6 * max(float(arm.ivar.max()), 1e-300)
        parts.append((arm.wavelength[use], level[use]))
    w, flux = (np.concatenate([p[i] for p in parts]) for i in range(2))
    order = np.argsort(w)
    return np.interp(wavelength, w[order], flux[order]), np.zeros(len(wavelength))


def _templates(work: Workspace, data: str, count: int) -> Expected:
    made = Templates(pixels(work.sample(data, "train").objects), count, 1)

    def expected(one: Observation, wavelength: np.ndarray) -> Modelled:
        scale = one.amplitude or 1.0
        arms = [(a.wavelength, a.flux / scale, a.ivar * scale**2) for a in one.arms]
        return scale * made.at(arms, wavelength), np.zeros(len(wavelength))

    return _each(expected)


def _each(expected: Callable[[Observation, np.ndarray], Modelled]) -> Expected:
    return lambda asked: [expected(one, arm.wavelength) for one, arm in asked]


def _generated(model: Any) -> Expected:
    """Arms of one grid are asked for together, from where the first patch of any begins to the last pixel."""
    patch = model.config.model.patch

    def expected(asked: Sequence[tuple[Observation, Arm]]) -> list[Modelled]:
        found: list[Modelled] = [(np.zeros(0), np.zeros(0))] * len(asked)
        grids: dict[tuple[Any, int], list[int]] = {}
        for i, (_, arm) in enumerate(asked):
            grids.setdefault((arm.grid, arm.first // APART), []).append(i)
        for (grid, _), members in grids.items():
            first = min(asked[i][1].first for i in members) // patch * patch
            last = max(asked[i][1].first + len(asked[i][1].flux) for i in members)
            try:
                flux, error = model.generate([asked[i][0] for i in members], grid.wavelength(first, last - first))
            except UserError as refused:
                raise NotMeasured(str(refused)) from refused
            for row, i in enumerate(members):
                arm = asked[i][1]
                own = slice(arm.first - first, arm.first - first + len(arm.flux))
                found[i] = flux[row, own].astype(np.float64), error[row, own].astype(np.float64)
        return found

    return expected


def _methods(work: Workspace, said: Experiment, result: Result, templates: str) -> dict[str, Expected]:
    """The baselines and the runs that can be had, by name."""
    found: dict[str, Expected] = {}
    for name in said.baselines:
        if name == "smoothed":
            found[name] = _each(smoothed)
        elif name in ("templates", "mean"):
            found[name] = _templates(work, templates, COMPONENTS if name == "templates" else 0)
        else:
            raise UserError(f"baselines: {name!r} can't reconstruct: known are smoothed, templates, mean")
    for run in said.runs:
        try:
            found[run] = _generated(work.model(run, work.evaluation.runs[run].seeds[0], {}).loaded())
            result.models.append(run)
        except NotMeasured as reason:
            result.missing.append(f"{run}: {reason}")
    return found


def _over(asked: Sequence[tuple[Observation, Sequence[Arm]]], expected: Expected) -> list[list[Modelled]]:
    """What is expected of each object on each of the arms."""
    found = iter(expected([(one, arm) for one, arms in asked for arm in arms]))
    return [[next(found) for _ in arms] for _, arms in asked]


def _chi2(arms: Sequence[Arm], models: Sequence[Modelled], where: Sequence[np.ndarray]) -> tuple[float, float]:
    """χ² per pixel over some pixels of the arms: with the errors of the observation, and with the model's added to them."""
    flux, ivar = (np.concatenate([getattr(a, k)[m] for a, m in zip(arms, where, strict=True)]).astype(np.float64)
                  for k in ("flux", "ivar"))  # fmt: skip
    model, error = (np.concatenate([x[i][m] for x, m in zip(models, where, strict=True)]) for i in range(2))
    ivar = np.where(np.isfinite(model), ivar, 0.0)
    both = np.where(ivar > 0, 1 / (1 / np.where(ivar > 0, ivar, 1) + error**2), 0.0)
    model = np.nan_to_num(model)
    return metrics.reduced_chi2(flux, model, ivar), metrics.reduced_chi2(flux, model, both)


def _add(result: Result, target: str, method: str, values: Sequence[tuple[float, float]]) -> None:
    """Medians and means over the objects of χ² per pixel, and the median with the model's own error included."""
    table = np.array([v for v in values if np.isfinite(v[0])])
    if not len(table):
        return
    figures = {"chi2/pixel": float(np.median(table[:, 0])), "chi2/pixel, mean": float(table[:, 0].mean())}
    if method in result.models:
        figures["chi2/pixel, with the model's error"] = float(np.median(table[:, 1]))
    result.add(target, method, figures, len(table), method in result.models)


def reconstruction(work: Workspace, said: Experiment, result: Result) -> None:
    """χ² per pixel of held-out objects on their native grids, with all pixels given, and of pixels that were hidden. Uses
    data, runs, folders (the first), objects; baselines `smoothed` and `templates` (components of the training set)."""
    test = work.sample(said.data, said.folders[0])
    chosen = np.sort(np.random.default_rng(1).permutation(len(test))[: 5 if work.quick else said.objects])
    objects = [one for one in test[chosen].objects if one.arms]
    if not objects:
        raise NotMeasured(f"{said.data} holds no spectra")
    gaps = [with_gaps(one, np.random.default_rng([1, i])) for i, one in enumerate(objects)]
    left = [i for i, (seen, _) in enumerate(gaps) if any((a.ivar > 0).any() for a in seen.arms)]
    for method, expected in _methods(work, said, result, said.data).items():
        began = time.monotonic()
        try:
            models = _over([(one, one.arms) for one in objects], expected)
            whole = [_chi2(one.arms, m, [np.ones(len(a.flux), bool) for a in one.arms])
                     for one, m in zip(objects, models, strict=True)]  # fmt: skip
            _add(result, "all pixels seen", method, whole)
            one, hidden = objects[0], gaps[0][1]
            k = int(np.argmax([(a.ivar > 0).sum() for a in one.arms]))
            title = f"{one.object_id}, {method}; shaded: not seen"
            _picture(work, result, method, one.arms[k], models[0][k][0], title, hidden[k])
            models = _over([(gaps[i][0], objects[i].arms) for i in left], expected)
            filled = [_chi2(objects[i].arms, m, gaps[i][1]) for i, m in zip(left, models, strict=True)]
            _add(result, "hidden pixels", method, filled)
        except NotMeasured as reason:
            result.missing.append(f"{method}: {reason}")
        result.seconds[method] = time.monotonic() - began


def _picture(work: Workspace, result: Result, method: str, arm: Arm, model: np.ndarray, title: str,
             hidden: np.ndarray | None = None) -> None:  # fmt: skip
    name = work.output / f"{result.name}-{method}.png"
    result.plots.append(plots.reconstruction(name, arm.wavelength, arm.flux, arm.ivar, model, hidden, title))


def _pairs(work: Workspace, said: Experiment, result: Result) -> list[tuple[Observation, Observation]]:
    """What is given of each object, and the observation to be predicted."""
    given = work.sample(said.data, said.folders[0])
    if said.arms:
        parts = [[replace(one, scalars={}, curves=(), arms=tuple(a for a in one.arms if a.name in said.arms.get(key, ())))
                  for one in given.objects] for key in ("given", "wanted")]  # fmt: skip
        good = [all(any((a.ivar > 0).any() for a in one.arms) for one in pair) for pair in zip(*parts, strict=True)]
        pairs = [pair for pair, use in zip(zip(*parts, strict=True), good, strict=True) if use]
        if not pairs:
            raise NotMeasured(f"no object of {said.data} has good pixels in the arms given and wanted")
        return pairs
    if said.other is None:
        raise UserError(f"experiments.{result.name}: cross_survey needs `other`, a data set of the same objects, or `arms`")
    wanted = work.sample(said.other, said.folders[0])
    place = {k: i for i, k in enumerate(wanted.column(said.match).tolist()) if k}
    pairs = [(given.objects[i], wanted.objects[place[k]]) for i, k in enumerate(given.column(said.match).tolist()) if k in place]
    if not pairs:
        raise NotMeasured(f"no object of {said.data} has the {said.match} of one of {said.other}")
    return pairs


def cross_survey(work: Workspace, said: Experiment, result: Result) -> None:
    """The spectrum that `other` observed, predicted from that of `data` of the same object (`match`), over the wavelengths
    that both have, and beyond; or some `arms` of an object from others of it. Uses data, other or arms, match, runs, folders
    (the first), objects; baselines `smoothed`, `templates` and `mean` (components of the training set of what is predicted,
    or its mean, fitted to what is given)."""
    pairs = _pairs(work, said, result)[: 5 if work.quick else said.objects]
    wanted, given = " ".join(said.arms.get("wanted", [])) or said.other, " ".join(said.arms.get("given", [])) or said.data
    title = f"{wanted} from {given}"
    for method, expected in _methods(work, said, result, said.other or said.data).items():
        began = time.monotonic()
        values: dict[str, list[tuple[float, float]]] = {"wavelengths that both have": [], "wavelengths of the other alone": []}
        levelled: list[tuple[float, float]] = []
        try:
            found = _over([(one, target.arms) for one, target in pairs], expected)
            for (one, target), models in zip(pairs, found, strict=True):
                low, high = min(a.wavelength[0] for a in one.arms), max(a.wavelength[-1] for a in one.arms)
                both = [(a.wavelength >= low) & (a.wavelength <= high) for a in target.arms]
                for key, where in zip(values, (both, [~m for m in both]), strict=True):
                    values[key].append(_chi2(target.arms, models, where))
                everywhere = [np.ones(len(a.flux), bool) for a in target.arms]
                levelled.append(_chi2(target.arms, _levelled(target.arms, models), everywhere))
            target = pairs[0][1]
            _picture(work, result, method, target.arms[0], found[0][0][0], f"{title}: {target.object_id}, {method}")
        except NotMeasured as reason:
            result.missing.append(f"{method}: {reason}")
        for key, of_key in {**values, "the level of the whole fitted": levelled}.items():
            _add(result, key, method, of_key)
        result.seconds[method] = time.monotonic() - began


def _levelled(arms: Sequence[Arm], models: Sequence[Modelled]) -> list[Modelled]:
    """Models times the one factor that brings them nearest to the arms."""
    flux, ivar = (np.concatenate([getattr(a, k) for a in arms]).astype(np.float64) for k in ("flux", "ivar"))
    model = np.concatenate([m for m, _ in models])
    use = (ivar > 0) & np.isfinite(model)
    power = float((ivar[use] * model[use] ** 2).sum())
    factor = float((ivar[use] * flux[use] * model[use]).sum()) / power if power > 0 else 1.0
    return [(factor * m, abs(factor) * e) for m, e in models]
