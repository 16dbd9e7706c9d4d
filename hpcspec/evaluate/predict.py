"""Experiment `predict`: parameters and classes of held-out objects, beside baselines, at one or more numbers of labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from astropy.table import Table

from hpcspec.catalog.schema import class_column
from hpcspec.cluster.run import digest
from hpcspec.errors import UserError
from hpcspec.evaluate import curves, metrics, plots
from hpcspec.evaluate.baselines import ALWAYS_ONCE, ONCE, SPECTRA, fit_predict, forest, scalar_table
from hpcspec.evaluate.inputs import NotMeasured, Pixels, Sample, pixels, subset
from hpcspec.evaluate.model import column, rows_of
from hpcspec.evaluate.report import Result
from hpcspec.evaluate.spec import Experiment
from hpcspec.evaluate.workspace import Workspace
from hpcspec.surveys.observation import Observation

log = logging.getLogger(__name__)
Features = dict[tuple[str, ...], dict[str, np.ndarray]]  # by bands and what the curves are
Predictions = dict[str, np.ndarray]  # by target; errors of parameters under "<target>_err" and "<target>_err95"


def predict(work: Workspace, said: Experiment, result: Result) -> None:
    """Uses data, runs, targets, baselines, seeds, labels, within, metadata, folders (the first is tested on). A run that was not
    trained on `data` is tested on its own first data set, which must have the same objects there.

    `xgboost`, `pca-xgboost`, `ridge`, `svm`, `svm-continuum` and `cannon` read spectra, `forest` and `gru` light curves,
    `xgboost-scalars` scalars.
    """
    data, inputs = work.evaluation.data[said.data], Inputs(said.metadata, features_kept(work))
    shown: dict[str, Predictions] = {}
    curve: dict[tuple[str, str], dict[str, dict[float, list[float]]]] = {}
    first = said.seeds[0] if data.split else 1
    test, train = work.sample(said.data, said.folders[0], first), work.sample(said.data, "train", first)
    if nobody := [t for t in said.targets if not train.known([t]).any()]:
        result.missing.append(f"{', '.join(nobody)}: no training object of {said.data} has it")
        said = said.model_copy(update={"targets": [t for t in said.targets if t not in nobody]})
    for amount in said.labels:

        def score(method: str, test: Sample, found: Predictions, model: bool, n: float, amount: float = amount) -> None:
            for target in said.targets:
                figures, count = scored(target, test, found, said.within.get(target))
                name = target if len(said.labels) == 1 else f"{target}, {_amount(amount)}"
                result.add(name, method, figures, count, model)
                for figure, value in figures.items():
                    curve.setdefault((target, figure), {}).setdefault(method, {}).setdefault(n, []).append(value)
            shown.setdefault(method, found)

        for method in said.baselines:
            for seed in work.seeds(said.seeds):
                once = method in ALWAYS_ONCE or (method in ONCE and amount == 1)
                if once and not data.split and seed != said.seeds[0]:
                    continue
                held = work.sample(said.data, said.folders[0], seed if data.split else 1)
                part = subset(_labelled(work.sample(said.data, "train", seed if data.split else 1), said), amount, seed)
                began = time.monotonic()
                found = baseline(work, method, part, held, said, seed, inputs)
                result.seconds.setdefault(method, time.monotonic() - began)
                log.info("%s, %s, %s: %.0f s", method, _amount(amount), f"seed {seed}", time.monotonic() - began)
                score(method, held, found, False, len(part))
        for run in said.runs:
            try:
                for seed in work.seeds(said.seeds if data.split else work.evaluation.runs[run].seeds):
                    at = seed if data.split else 1
                    own = work.evaluation.runs[run].data
                    name = said.data if said.data in own else own[0]
                    held = work.sample(name, said.folders[0], at)
                    if name != said.data and held.ids != work.sample(said.data, said.folders[0], at).ids:
                        raise NotMeasured(f"{name} and {said.data} have other objects in {said.folders[0]}")
                    part = subset(_labelled(work.sample(name, "train", at), said), amount, seed)
                    model = work.model(run, seed, {} if amount == 1 else {name: part}, at)
                    if said.metadata:
                        folder = work.folder(name, said.folders[0], at)
                        table = model.catalogue(work.evaluation.data[name].survey, folder, f"{name}-{said.folders[0]}")
                    else:
                        table = asked(model.loaded(), [replace(one, scalars={}) for one in held.objects])
                    score(run, held, from_table(table, held, said.targets, part.classes), True, len(part))
                    result.seconds.setdefault(run, model.seconds)
            except NotMeasured as reason:
                result.missing.append(f"{run}, {_amount(amount)}: {reason}")
    _draw(work, said, result, test, shown, curve)


def _amount(amount: float) -> str:
    return "all labels" if amount == 1 else f"{100 * amount:g} % of the labels" if amount < 1 else f"{amount:g} labels"


def _labelled(train: Sample, said: Experiment) -> Sample:
    """The objects with any of the targets, with known classes wherever there are classes to be learned."""
    use = np.any([train.known([t]) for t in said.targets], axis=0)
    if not use.any():
        raise NotMeasured(f"no object of {said.data} has a label for {', '.join(said.targets)}: check tables, key and columns")
    return train[use]


def baseline(work: Workspace, method: str, train: Sample, test: Sample, said: Experiment, seed: int,
             inputs: Inputs) -> Predictions:  # fmt: skip
    """What a baseline predicts for `test`. Raises UserError for one that isn't known."""
    labels: dict[str, np.ndarray] = {}
    for target in said.targets:
        values = train.classes if target == "class" else train.values[target]
        if target in said.within:
            values = np.where(np.isin(train.classes, said.within[target]), values, np.nan)
        labels[target] = values
    if method in SPECTRA or method == "cannon":
        return fit_predict(method, inputs.pixels(train), labels, inputs.pixels(test), seed, work.effort)
    if method == "gru" and said.targets == ["class"]:
        return {"class": curves.gru(train, test, seed, work.effort, said.metadata)}
    a, b = inputs.scalars(train, test)
    if method == "forest" and said.targets == ["class"]:
        a, b = np.hstack([inputs.features(train), a]), np.hstack([inputs.features(test), b])
        return {"class": forest(a, train.classes, b, seed, work.effort)}
    if method == "xgboost-scalars":
        return {t: scalar_table(a, y, b, seed, work.effort) for t, y in labels.items()}
    known = [*SPECTRA, "cannon", "xgboost-scalars", "forest and gru (for class alone)"]
    raise UserError(f"baselines: {method!r} can't predict {', '.join(said.targets)}: known are {', '.join(known)}")


def features_kept(work: Workspace) -> Features:
    """What takes minutes for thousands of light curves is made once for all experiments."""
    found: Features = work.once("features of light curves", dict)
    return found


class Inputs:
    """What baselines see of objects, made once for each: pixels on the grid of the first that asked, features of curves, which
    are kept in `features` too."""

    def __init__(self, metadata: bool, features: Features | None = None):
        self._metadata = metadata
        self._grid: np.ndarray | None = None
        self._bands: list[str] = []
        self._features: Features = {} if features is None else features
        # by id(): folders may have other objects under the same identifiers; the object is kept, so that it stays the only one
        self._rows: dict[int, tuple[Observation, np.ndarray, np.ndarray]] = {}

    def pixels(self, sample: Sample) -> Pixels:
        """Of objects with spectra. Raises UserError if one has none."""
        new = [one for one in sample.objects if id(one) not in self._rows]
        if lost := next((one for one in new if not one.arms), None):
            raise UserError(f"{lost.object_id} has no spectrum: baselines for spectra can't be used here")
        if new:
            made = pixels(new, self._grid)
            self._grid = made.grid
            self._rows |= {id(one): (one, made.flux[i], made.ivar[i]) for i, one in enumerate(new)}
        rows = [self._rows[id(one)] for one in sample.objects]
        flux, ivar = np.stack([row[1] for row in rows]), np.stack([row[2] for row in rows])
        return Pixels(cast(np.ndarray, self._grid), flux, ivar)

    def features(self, sample: Sample) -> np.ndarray:
        """Of objects with light curves, and their scalars where metadata may be used: (n, m)."""
        self._bands = self._bands or sorted({c.band for one in sample.objects for c in one.curves})
        known = self._features.setdefault(tuple(self._bands), {})
        keys = [digest([(c.band, c.time.tobytes(), c.value.tobytes(), c.ivar.tobytes()) for c in one.curves])
                for one in sample.objects]  # fmt: skip
        new = {key: one for key, one in zip(keys, sample.objects, strict=True) if key not in known}
        if new:
            known |= zip(new, curves.features(list(new.values()), self._bands), strict=True)
        return np.stack([known[key] for key in keys])

    def scalars(self, *samples: Sample) -> list[np.ndarray]:
        """Scalars of samples (n, m), NaN where missing: of the names that the first has."""
        names = sorted({name for one in samples[0].objects for name in one.scalars}) if self._metadata else []
        return [
            np.array([[o.scalars.get(n, (np.nan,))[0] for n in names] for o in s.objects]).reshape(len(s), -1) for s in samples
        ]


def asked(model: Any, objects: list[Observation]) -> Table:
    """`Trained.predict`, whose refusal is NotMeasured."""
    try:
        return model.predict(objects)
    except UserError as error:
        raise NotMeasured(str(error)) from error


def from_table(table: Table, test: Sample, targets: list[str], classes: np.ndarray | None = None) -> Predictions:
    """The targets, and errors of parameters, of each object of a sample; NaN or "" for those that the table lacks. The class is
    the most probable of these `classes`, if they are given: a run may know those of other surveys."""
    rows, found = rows_of(table, test.ids), {}
    for target in targets:
        found[target] = column(table, target, rows)
        asked_of = set() if classes is None else set(classes.tolist()) - {""}
        named = [c for c in sorted(asked_of) if class_column(c) in table.colnames]
        if target == "class" and named:
            best = np.nan_to_num(probabilities(table, rows, named), nan=-1.0).argmax(1)
            found[target] = np.where(rows >= 0, np.array(named)[best], "")
        for name in (f"{target}_err", f"{target}_err95"):
            if name in table.colnames:
                found[name] = column(table, name, rows).astype(np.float64)
    return found


def probabilities(table: Table, rows: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(n, classes) of these rows of a catalogue, NaN where the row is −1; 0 for a class that the run has not learned."""
    none = np.where(rows >= 0, 0.0, np.nan)
    names = [class_column(c) for c in classes]
    return np.stack([column(table, n, rows).astype(np.float64) if n in table.colnames else none for n in names], 1)


def scored(target: str, test: Sample, found: Mapping[str, np.ndarray], within: list[str] | None) -> tuple[dict[str, float], int]:
    """Figures of a target and the number of objects: those that have a label, and of parameters a prediction."""
    use = test.known([target]) & (np.isin(test.classes, within) if within else True)
    if target == "class":
        return (metrics.classification(test.classes[use], found["class"][use]) if use.any() else {}), int(use.sum())
    value = np.asarray(found[target], np.float64)
    having, use = int(use.sum()), use & np.isfinite(value)
    truth = test.values[target]
    if use.sum() < 5:
        return {}, int(use.sum())
    figures = metrics.redshift(truth[use], value[use]) if target == "z" else metrics.regression(truth[use], value[use])
    error, wide = (found.get(f"{target}_{name}") for name in ("err", "err95"))
    if error is not None:
        figures |= metrics.coverage(truth[use], value[use], error[use], None if wide is None else wide[use])
    bound = test.values.get(f"{target} bound")
    if bound is not None and np.isfinite(bound[use]).all():
        figures |= metrics.bound_ratio(truth[use], value[use], bound[use])
    if use.sum() < having:
        figures["without a value"] = float(1 - use.sum() / having)
    return figures, int(use.sum())


def _draw(work: Workspace, said: Experiment, result: Result, test: Sample, shown: Mapping[str, Predictions],
          curve: Mapping[tuple[str, str], dict[str, dict[float, list[float]]]]) -> None:  # fmt: skip
    """Recovered against true, calibration, Kiel diagrams and confusion of each method's first seed; curves over labels."""

    def path(what: str) -> Path:
        return work.output / f"{result.name}-{what}.png"

    if len(said.labels) > 1:
        for (target, figure), methods in curve.items():
            if figure in ("MAD", "std", "NMAD", "accuracy", "macro-F1"):
                lines = {}
                for method, by in methods.items():
                    means, deviations = zip(*(metrics.over_seeds(v) for v in by.values()), strict=True)
                    lines[method] = (list(by), means, deviations)
                result.plots.append(plots.efficiency(path(f"{target}-{figure}"), f"{target}, {figure}", lines))
        return
    first = [*result.models, *[m for m in shown if m not in result.models]][:3]
    z: dict[str, np.ndarray] = {}
    for target in said.targets:
        use = test.known([target]) & (np.isin(test.classes, said.within[target]) if target in said.within else True)
        having = {m: shown[m][target][use] for m in first if target in shown[m]}
        if target == "class" and use.any():
            result.plots.append(plots.confusion(path("confusion"), test.classes[use], having))
        elif having := {m: v for m, v in having.items() if np.isfinite(v).any()}:
            result.plots.append(plots.recovered(path(target), target, test.values[target][use], having))
        for m in result.models:
            error = shown[m].get(f"{target}_err")
            if error is not None:
                residual = ((shown[m][target] - test.values[target]) / error)[use]
                z |= {f"{m}, {target}": residual[np.isfinite(residual)]} if np.isfinite(residual).any() else {}
    if z:
        result.plots.append(plots.calibration(path("calibration"), z))
    if {"teff", "logg"} <= set(said.targets):
        panels = {"labels": test.values} | {m: shown[m] for m in first if "teff" in shown[m]}
        triples = {n: (p["teff"], p["logg"], p.get("fe_h")) for n, p in panels.items()}
        result.plots.append(plots.kiel(path("kiel"), triples))
