"""Experiments of the star model's row: scalars of stars from other scalars, spectra of coefficients, and the dust's curve."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from hpcspec.adapt.calibration import NORMAL
from hpcspec.errors import UserError
from hpcspec.evaluate import metrics, plots
from hpcspec.evaluate.baselines import ALPHAS, scalar_table
from hpcspec.evaluate.inputs import NotMeasured, Sample
from hpcspec.evaluate.predict import Predictions, asked, from_table
from hpcspec.evaluate.report import Result
from hpcspec.evaluate.spec import Experiment
from hpcspec.evaluate.workspace import Workspace
from hpcspec.simulate.bp_rp import BASES, SPECTROGRAPHS
from hpcspec.simulate.extinction import R_V, ccm89
from hpcspec.surveys.observation import Observation
from hpcspec.trained import scalars

LABELS = ("teff", "logg", "m_h", "logebv")
RANGE = re.compile(r"(\w*?)(\d+)\.\.(\d+)")
RANDOM = re.compile(r"(\d+) random")
NOT_GIVEN = frozenset({*LABELS, "parallax", "g_fakemag", "phot_g_mean_mag"})  # of those drawn at random
DISTANCE, LUMINOUS = "distance", "g_fakemag"
DUST = (0.05, 0.45)  # E(B-V), mag, of the two spectra whose ratio is the dust's
POINTS = {"bp": np.linspace(3800.0, 6300.0, 11), "rp": np.linspace(6700.0, 10000.0, 12)}  # Å
POINTS_ALL = np.concatenate(list(POINTS.values()))


def named(patterns: Sequence[str], known: Sequence[str], where: str = "inputs") -> tuple[list[str], int]:
    """The scalars that patterns name, and how many more at random. Raises UserError for one that isn't known."""
    names: list[str] = []
    count = 0
    for pattern in patterns:
        if match := RANDOM.fullmatch(pattern):
            count += int(match[1])
        elif match := RANGE.fullmatch(pattern):
            names += [f"{match[1]}{k}" for k in range(int(match[2]), int(match[3]) + 1)]
        else:
            names.append(pattern)
    if lost := [n for n in names if n not in known]:
        raise UserError(f"{where}: no object has the scalar {lost[0]!r}: they have {', '.join(sorted(known)[:20])} …")
    return names, count


def given(sample: Sample, patterns: Sequence[str], without: Sequence[str], seed: int) -> list[Observation]:
    """Objects of a sample with these scalars alone; those at random are drawn anew for each, without labels and distances."""
    known = sorted({n for one in sample.objects for n in one.scalars})
    names, count = named(patterns, known)
    pool, rng = np.array([n for n in known if n not in NOT_GIVEN and n not in without]), np.random.default_rng(seed)
    out = []
    for one in sample.objects:
        drawn = rng.permutation(pool)[:count].tolist() if count else []
        mine = {n: one.scalars[n] for n in [*names, *drawn] if n in one.scalars and n not in without}
        out.append(replace(one, scalars=mine, arms=(), curves=()))
    return out


def matrix(objects: Sequence[Observation], names: Sequence[str]) -> np.ndarray:
    """(n, m, 2) values and errors of scalars, NaN where absent."""
    rows = [[one.scalars.get(n, (np.nan, np.nan)) for n in names] for one in objects]
    return np.array(rows, np.float64).reshape(len(objects), len(names), 2)


def _learned(train: Sample, target: str) -> np.ndarray:
    """(n,) the target as the training objects' own scalars have it, noise included; else as the tables have it."""
    if target == DISTANCE:
        value, error = matrix(train.objects, [LUMINOUS])[:, 0].T
        return np.where((value > 0) & (value > 3 * error), np.log(np.where(value > 0, value, 1.0)), np.nan)
    found = matrix(train.objects, [target])[:, 0, 0]
    return found if np.isfinite(found).any() else train.values[target]


def _ln_distance(objects: Sequence[Observation], ln_luminous: np.ndarray) -> np.ndarray:
    """ln of distances in pc: g_fakemag is parallax (mas) times 10^(G/5)."""
    return np.log(1e3) + 0.2 * np.log(10) * matrix(objects, ["phot_g_mean_mag"])[:, 0, 0] - ln_luminous


def any_to_any(work: Workspace, said: Experiment, result: Result) -> None:
    """Targets (scalars, `distance`) from each of the `inputs`: a run whose pretrained model knows a target is asked for it as
    for any scalar, another by what its head has learned from the same labels. Uses data, runs, targets, inputs, seeds, folders
    (the first), and the baseline `xgboost-scalars`: 2000 trees, trained on the same scalars of the same objects, whose
    labels are what they have as scalars. The truth is the tables', where they have the target."""
    train, test = work.sample(said.data, "train"), work.sample(said.data, said.folders[0])
    if unknown := set(said.baselines) - {"xgboost-scalars"}:
        raise UserError(f"baselines: {min(unknown)!r} can't predict scalars: known are xgboost-scalars")
    if not said.inputs or not said.targets:
        raise UserError(f"experiments.{result.name}: any_to_any needs inputs and targets")
    noisy = replace(train, values={t: _learned(train, t) for t in train.values if t != DISTANCE})
    for number, (setting, patterns) in enumerate(said.inputs.items()):
        withheld = [*said.targets, *([LUMINOUS, "parallax"] if DISTANCE in said.targets else [])]
        objects = given(test, patterns, withheld, 1)
        shown: dict[str, Predictions] = {}

        def score(method: str, found: Predictions, model: bool) -> None:
            for target in said.targets:
                figures, count = _scored(target, test, found)
                result.add(f"{target}, {setting}", method, figures, count, model)  # noqa: B023
            shown.setdefault(method, found)  # noqa: B023

        for seed in work.seeds(said.seeds) if said.baselines else []:
            began = time.monotonic()
            names = sorted({n for one in objects for n in one.scalars})
            x, y = (matrix(part, names)[..., 0] for part in (given(train, patterns, withheld, 1000 + seed), objects))
            found = {t: scalar_table(x, _learned(train, t), y, seed, work.effort) for t in said.targets}
            if DISTANCE in found:
                found[DISTANCE] = _ln_distance(test.objects, found[DISTANCE])
            result.seconds.setdefault("xgboost-scalars", time.monotonic() - began)
            score("xgboost-scalars", found, False)
        for run in said.runs:
            try:
                for seed in work.seeds(work.evaluation.runs[run].seeds):
                    score(run, _predicted(work, said, run, seed, noisy, test, objects), True)
            except NotMeasured as reason:
                result.missing.append(f"{run}, {setting}: {reason}")
        for target in said.targets if number == 0 and result.models else ():
            truth = _truth(target, test)[0]
            having = {m: f[target] for m, f in shown.items() if np.isfinite(f[target]).any()}
            if having:
                name = work.output / f"{result.name}-{target}.png"
                result.plots.append(plots.recovered(name, f"ln {target}" if target == DISTANCE else target, truth, having))
        if number == 0 and {"bp_rp", "j_h"} <= set(said.targets) and result.models:
            panels = {"measured": {t: _truth(t, test)[0] for t in said.targets}, **shown}
            points = {n: (p["bp_rp"], p["j_h"], test.values.get("teff")) for n, p in panels.items()}
            result.plots.append(plots.locus(work.output / f"{result.name}-locus.png", points, ("BP − RP", "J − H", "Teff [K]")))


def _predicted(work: Workspace, said: Experiment, run: str, seed: int, noisy: Sample, test: Sample,
               objects: list[Observation]) -> Predictions:  # fmt: skip
    """A run's targets and their errors for all the test objects."""
    ignored = work.evaluation.runs[run].set.get("model.ignore", ())
    names = [LUMINOUS if t == DISTANCE else t for t in said.targets]
    head = bool(set(names) & set(ignored))
    trained = work.model(run, seed, {said.data: noisy} if head else {}).loaded()
    if head:
        if DISTANCE in said.targets:
            raise NotMeasured(f"it ignores {LUMINOUS}, and its head learns no distance")
        return from_table(asked(trained, objects), test, said.targets)
    try:
        value, error = (x.astype(np.float64) for x in trained.generate_scalars(objects, names))
    except UserError as refused:
        raise NotMeasured(str(refused)) from refused
    found: Predictions = {}
    for k, target in enumerate(said.targets):
        found[target], found[f"{target}_err"] = value[:, k], error[:, k]
        if target == DISTANCE:
            positive = np.where(value[:, k] > 0, value[:, k], np.nan)
            found[target], found[f"{target}_err"] = _ln_distance(test.objects, np.log(positive)), error[:, k] / positive
    return found


def _truth(target: str, test: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The target of the test objects and the error that it has itself."""
    if target in test.values:
        truth = test.values[target]
        return (np.log(truth) if target == DISTANCE else truth), np.zeros(len(test))
    value, error = matrix(test.objects, [target])[:, 0].T
    return value, np.nan_to_num(error)


def _scored(target: str, test: Sample, found: Predictions) -> tuple[dict[str, float], int]:
    truth, own = _truth(target, test)
    value = found[target]
    having, use = int(np.isfinite(truth).sum()), np.isfinite(truth) & np.isfinite(value)
    if use.sum() < 5:
        return {}, int(use.sum())
    figures = metrics.regression(truth[use], value[use])
    error = found.get(f"{target}_err")
    if error is not None:
        wide = found.get(f"{target}_err95")
        wide = None if wide is None else np.hypot(wide, NORMAL * own)[use]
        figures |= metrics.coverage(truth[use], value[use], np.hypot(error, own)[use], wide)
    if use.sum() < having:
        figures["without a value"] = float(1 - use.sum() / having)
    return figures, int(use.sum())


Completing = Callable[[list[Observation]], tuple[np.ndarray, np.ndarray]]  # values and errors (n, k)


def completion(work: Workspace, said: Experiment, result: Result) -> None:
    """Many scalars at once (`targets`, ranges allowed) from each of the `inputs`: χ² per scalar of the measured values. Uses
    data, runs, targets, inputs, folders (the first); baselines `mean` and `ridge` (of cubic terms where six or fewer scalars
    are given), trained on the same objects."""
    train, test = work.sample(said.data, "train"), work.sample(said.data, said.folders[0])
    known = sorted({n for one in train.objects for n in one.scalars})
    targets = named(said.targets, known, "targets")[0]
    measured = matrix(test.objects, targets)
    for setting, patterns in said.inputs.items():
        objects = given(test, patterns, targets, 1)
        names = [n for n in known if any(n in one.scalars for one in objects)]
        methods: dict[str, tuple[list[int], Callable[[int], Completing]]] = {
            m: ([1], partial(_regressed, m, given(train, patterns, targets, 1001), train, names, targets)) for m in said.baselines
        }
        for run in said.runs:
            methods[run] = (work.seeds(work.evaluation.runs[run].seeds), partial(_asking, work, run, targets=targets))
        for method, (seeds, make) in methods.items():
            model = method in said.runs
            try:
                for seed in seeds:
                    value, error = make(seed)(objects)
                    alone = metrics.chi2_each(measured[..., 0], value, measured[..., 1])
                    alone = alone[np.isfinite(alone)]
                    if not len(alone):
                        raise NotMeasured(f"no test object has {', '.join(targets[:3])} with an error")
                    figures = {"chi2/scalar": float(np.median(alone)), "chi2/scalar, mean": float(alone.mean())}
                    if model:
                        both = metrics.chi2_each(measured[..., 0], value, np.hypot(measured[..., 1], error))
                        figures["chi2/scalar, with the model's error"] = float(np.nanmedian(both))
                    result.add(setting, method, figures, len(alone), model)
            except NotMeasured as reason:
                result.missing.append(f"{method}, {setting}: {reason}")


def _asking(work: Workspace, run: str, seed: int, targets: Sequence[str]) -> Completing:
    trained = work.model(run, seed, {}).loaded()

    def complete(objects: list[Observation]) -> tuple[np.ndarray, np.ndarray]:
        try:
            return trained.generate_scalars(objects, targets)
        except UserError as refused:
            raise NotMeasured(str(refused)) from refused

    return complete


def _regressed(kind: str, inputs: list[Observation], train: Sample, names: list[str], targets: Sequence[str], _: int,
               ) -> Completing:  # fmt: skip
    """A baseline without seeds."""
    return regressed(kind, inputs, train, names, targets)


def regressed(kind: str, inputs: list[Observation], train: Sample, names: list[str], targets: Sequence[str]) -> Completing:
    """A baseline trained on objects reduced to their inputs, and on the targets of the whole ones; its errors are 0.

    Raises UserError for an unknown one.
    """
    if kind not in ("mean", "ridge"):
        raise UserError(f"baselines: {kind!r} can't complete scalars: known are mean, ridge")
    y = matrix(train.objects, targets)[..., 0]
    known = np.isfinite(y).all(1)
    center, spread = y[known].mean(0), y[known].std(0) + 1e-300
    terms = PolynomialFeatures(3 if len(names) <= 6 and kind == "ridge" else 1)
    filled = SimpleImputer(keep_empty_features=True)
    made = make_pipeline(filled, StandardScaler(), terms, StandardScaler(), RidgeCV(ALPHAS / 100))
    if kind == "ridge":
        made.fit(matrix(inputs, names)[known][..., 0], (y[known] - center) / spread)

    def complete(objects: list[Observation]) -> tuple[np.ndarray, np.ndarray]:
        found = made.predict(matrix(objects, names)[..., 0]) if kind == "ridge" else np.zeros((len(objects), len(targets)))
        return center + spread * found, np.zeros((len(objects), len(targets)))

    return complete


def dust(clear: np.ndarray, dusty: np.ndarray, reddening: float) -> np.ndarray:
    """A(λ)/E(B-V) (n, points) up to a constant for each star, at POINTS: from coefficients (n, 110), BP before RP, of the same
    stars behind less and more dust, over their fluxes in G, and the difference of E(B-V); NaN where no light is left."""
    curve = []
    for band, (name, at) in enumerate(POINTS.items()):
        own = slice(band * BASES, (band + 1) * BASES)
        light = [np.stack([SPECTROGRAPHS[name].sampled(c[own], at) for c in part]) for part in (clear, dusty)]
        good = (light[0] > 0) & (light[1] > 0)
        ratio = np.where(good, light[1], 1.0) / np.where(good, light[0], 1.0)
        curve.append(np.where(good, -2.5 * np.log10(ratio) / reddening, np.nan))
    return np.concatenate(curve, axis=1)


def extinction(work: Workspace, said: Experiment, result: Result) -> None:
    """The extinction curve that the coefficients say, point by point beside the one that was put in: of stars with the labels of
    the test objects, each behind two amounts of dust. Uses data, runs, objects, folders (the first); the baseline `ridge` is of
    cubic terms of the labels."""
    train, test = work.sample(said.data, "train"), work.sample(said.data, said.folders[0])
    names = [f"{band}_{k}" for band in POINTS for k in range(BASES)]
    if lost := [t for t in LABELS if t not in test.values]:
        raise UserError(f"data.{said.data}.parameters lacks {lost[0]}, which extinction needs")
    rows = np.flatnonzero(test.known(LABELS[:3]))[: 10 if work.quick else said.objects]
    stars = [[scalars({**{t: float(test.values[t][i]) for t in LABELS[:3]}, "logebv": float(np.log10(ebv))}, test.ids[i])
              for i in rows] for ebv in DUST]  # fmt: skip
    truth = R_V * ccm89(POINTS_ALL)
    curves = {}
    methods: dict[str, Callable[[], Completing]] = {}
    for method in said.baselines:
        labelled = [replace(one, scalars={t: one.scalars[t] for t in LABELS if t in one.scalars}) for one in train.objects]
        methods[method] = partial(regressed, method, labelled, train, list(LABELS), names)
    for run in said.runs:
        methods[run] = partial(_asking, work, run, work.evaluation.runs[run].seeds[0], names)
    for method, make in methods.items():
        try:
            complete = make()
            clear, dusty = (complete(part)[0] for part in stars)
            each = dust(clear, dusty, DUST[1] - DUST[0])
            each += np.nanmedian(truth - each, axis=1, keepdims=True)
            curve = np.nanmedian(each, axis=0)
        except NotMeasured as reason:
            result.missing.append(f"{method}: {reason}")
            continue
        model = method in said.runs
        curves[method] = curve
        figures = {"rms": float(np.sqrt(np.nanmean((curve - truth) ** 2))), "largest": float(np.nanmax(np.abs(curve - truth))),
                   "rms, single stars": float(np.sqrt(np.nanmean((each - truth) ** 2)))}  # fmt: skip
        result.add("A(λ)/E(B-V), deviation", method, figures, len(rows), model)
        for at, value, right in zip(POINTS_ALL, curve, truth, strict=True):
            result.add(f"{at:.0f} Å, {right:.2f}", method, {"A/E(B-V) bias": float(value - right)}, len(rows), model)
    if curves:
        name = work.output / f"{result.name}.png"
        result.plots.append(plots.lines(name, POINTS_ALL, {"put in": truth, **curves}, ("vacuum wavelength [Å]", "A(λ)/E(B−V)")))
