"""Experiments of AstroM3's row: classes from every subset of kinds of measurement, and one kind found by another."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hpcspec.errors import UserError
from hpcspec.evaluate import metrics
from hpcspec.evaluate.baselines import forest
from hpcspec.evaluate.inputs import NotMeasured, Sample, pixels
from hpcspec.evaluate.predict import Features, Inputs, asked, features_kept, from_table
from hpcspec.evaluate.report import Result
from hpcspec.evaluate.spec import Experiment
from hpcspec.evaluate.workspace import Workspace
from hpcspec.surveys.observation import Observation

MODALITIES = {"spectra": "spectra", "curves": "curves", "metadata": "scalars"}  # and how the model calls them
COMPONENTS = 30


def holding(one: Observation, kinds: tuple[str, ...]) -> Observation | None:
    """The object with these modalities alone; None if it has none of them."""
    only = replace(one, arms=one.arms if "spectra" in kinds else (), curves=one.curves if "curves" in kinds else (),
                   scalars=one.scalars if "metadata" in kinds else {})  # fmt: skip
    return only if only.arms or only.curves or only.scalars else None


def modalities(work: Workspace, said: Experiment, result: Result) -> None:
    """Accuracy of the class for every subset of the modalities given at test time. Uses data, runs, baselines, seeds; the
    baseline `forest` (components of the spectra, features of the curves, scalars) is trained for each subset anew, on the
    objects that have any of it."""
    train, test = work.sample(said.data, "train"), work.sample(said.data, said.folders[0])
    known = [part.known(["class"]) for part in (train, test)]
    train, test = (part[use] for part, use in zip((train, test), known, strict=True))
    seen = {m: [block[use] for block, use in zip(pair, known, strict=True)]
            for m, pair in blocks(work, said.data, said.folders[0]).items()}  # fmt: skip
    for kinds in (c for k in range(1, len(seen) + 1) for c in itertools.combinations(seen, k)):
        target = " + ".join(kinds)
        for seed in work.seeds(said.seeds) if "forest" in said.baselines else []:
            a, b = (np.hstack([seen[m][i] for m in kinds]) for i in range(2))
            having = np.isfinite(a).any(1)
            found = forest(a[having], train.classes[having], b, seed, work.effort)
            result.add(target, "forest", metrics.classification(test.classes, found), len(test))
        for run in said.runs:
            try:
                for seed in work.seeds(work.evaluation.runs[run].seeds):
                    reduced = [holding(one, kinds) for one in test.objects]
                    table = asked(work.model(run, seed, {}).loaded(), [one for one in reduced if one])
                    found = from_table(table, test, ["class"], train.classes)["class"]
                    result.add(target, run, metrics.classification(test.classes, found), len(test), True)
            except NotMeasured as reason:
                result.missing.append(f"{run}, {target}: {reason}")


def blocks(work: Workspace, data: str, folder: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`blocks_of` the training objects and those of a folder, made once."""
    kept = features_kept(work)
    return work.once(f"blocks {data} {folder}", lambda: blocks_of(work.sample(data, "train"), work.sample(data, folder), kept))


def blocks_of(train: Sample, test: Sample, features: Features | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What baselines see of each modality that the training set has, of both sets: (n, m), NaN where an object lacks it."""
    inputs, found = Inputs(True, features), {}
    for kind in MODALITIES:
        there = [np.array([holding(one, (kind,)) is not None for one in part.objects]) for part in (train, test)]
        if there[0].any():
            both = _block(kind, train, test, inputs, there[0])
            a, b = (np.where(h[:, None] & (np.abs(x) < 1e30), x, np.nan) for h, x in zip(there, both, strict=True))
            found[kind] = (a, b)
    return found


def _block(kind: str, train: Sample, test: Sample, inputs: Inputs, there: np.ndarray) -> list[np.ndarray]:
    if kind == "spectra":
        seen = pixels(train.objects)
        filled = seen.filled()
        pca = PCA(min(COMPONENTS, int(there.sum()) - 1), random_state=1).fit(filled[there])
        other = pixels(test.objects, seen.grid)
        return [pca.transform(filled), pca.transform(np.where(np.isfinite(other.flux), other.flux, pca.mean_))]
    if kind == "curves":
        return [inputs.features(train), inputs.features(test)]
    return inputs.scalars(train, test)


def retrieval(work: Workspace, said: Experiment, result: Result) -> None:
    """Whether the object that one kind of measurement is of is found, by the embeddings of each kind, among those of another
    kind of all the test objects that have both. Uses data, runs, folders (the first); beside `chance`, the baseline `cca` is
    a canonical correlation analysis of what the forest sees."""
    test = work.sample(said.data, said.folders[0])
    if unknown := set(said.baselines) - {"cca"}:
        raise UserError(f"baselines: {min(unknown)!r} can't retrieve: known are cca")
    seen = blocks(work, said.data, said.folders[0])
    for a, b in itertools.combinations(seen, 2):
        both = np.array([holding(one, (a,)) is not None and holding(one, (b,)) is not None for one in test.objects])
        if both.sum() < 2:
            result.missing.append(f"{a} and {b}: fewer than 2 test objects have both")
            continue
        pair = test[both]

        def found(method: str, x: np.ndarray, y: np.ndarray, model: bool, a: str = a, b: str = b) -> None:
            numbers = np.arange(len(x))
            for name, one, other in ((f"{b} by {a}", x, y), (f"{a} by {b}", y, x)):
                figures = {f"retrieval@{k}": metrics.retrieval(one, numbers, k, (other, numbers)) for k in (1, 10)}
                result.add(name, method, figures, len(x), model)

        for name in (f"{b} by {a}", f"{a} by {b}"):
            chance = {f"retrieval@{k}": min(k / len(pair), 1.0) for k in (1, 10)}
            result.add(name, "chance", chance, len(pair))
        if "cca" in said.baselines:
            x, y = _correlated([seen[k][0] for k in (a, b)], [seen[k][1][both] for k in (a, b)])
            found("cca", x, y, False)
        for run in said.runs:
            try:
                for seed in work.seeds(work.evaluation.runs[run].seeds):
                    model = work.model(run, seed, {}).loaded()
                    found(run, by_kind(model, pair, a), by_kind(model, pair, b), True)
            except NotMeasured as reason:
                result.missing.append(f"{run}, {a} and {b}: {reason}")


def by_kind(model: Any, sample: Sample, kind: str) -> np.ndarray:
    """(n, D): `Trained.embed` by one modality, whose refusal is NotMeasured."""
    try:
        return model.embed(sample.objects, MODALITIES[kind])
    except UserError as error:
        raise NotMeasured(str(error)) from error


def _correlated(train: list[np.ndarray], test: list[np.ndarray]) -> list[np.ndarray]:
    """Both kinds' canonical components of the test objects, learned from the training objects that have both."""
    both = np.all([np.isfinite(x).any(1) for x in train], axis=0)
    made = [make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()).fit(x[both]) for x in train]
    a, b = (m.transform(x[both]) for m, x in zip(made, train, strict=True))
    count = min(10, a.shape[1], b.shape[1], len(a) - 1)
    cca = CCA(count, max_iter=200, tol=1e-4).fit(a, b)
    return list(cca.transform(*(np.clip(m.transform(x), -5, 5) for m, x in zip(made, test, strict=True))))
