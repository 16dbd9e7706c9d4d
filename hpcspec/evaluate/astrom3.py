"""Experiments of AstroM3's row: classes from every subset of modalities."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from sklearn.decomposition import PCA

from hpcspec.evaluate import metrics
from hpcspec.evaluate.baselines import forest
from hpcspec.evaluate.inputs import NotMeasured, Sample, pixels
from hpcspec.evaluate.predict import Inputs, asked, from_table
from hpcspec.evaluate.report import Result
from hpcspec.evaluate.spec import Experiment
from hpcspec.evaluate.workspace import Workspace
from hpcspec.surveys.observation import Observation

MODALITIES = ("spectra", "curves", "metadata")
COMPONENTS = 30


def holding(one: Observation, kinds: tuple[str, ...]) -> Observation | None:
    """The object with these modalities alone; None if it has none of them."""
    only = replace(one, arms=one.arms if "spectra" in kinds else (), curves=one.curves if "curves" in kinds else (),
                   scalars=one.scalars if "metadata" in kinds else {})  # fmt: skip
    return only if only.arms or only.curves or only.scalars else None


def modalities(work: Workspace, said: Experiment, result: Result) -> None:
    """Accuracy of the class for every subset of the modalities given at test time. Uses data, runs, baselines, seeds; the
    baseline `forest` (components of the spectra, features of the curves, scalars) is trained for each subset anew."""
    train, test = work.sample(said.data, "train"), work.sample(said.data, said.folders[0])
    train, test = train[train.known(["class"])], test[test.known(["class"])]
    present = [m for m in MODALITIES if any(holding(one, (m,)) for one in train.objects)]
    inputs = Inputs(True)
    blocks = {m: _block(m, train, test, inputs) for m in present} if "forest" in said.baselines else {}
    for kinds in (c for k in range(1, len(present) + 1) for c in itertools.combinations(present, k)):
        target = " + ".join(kinds)
        for seed in work.seeds(said.seeds) if blocks else []:
            a, b = (np.hstack([blocks[m][i] for m in kinds]) for i in range(2))
            found = forest(a, train.classes, b, seed, work.effort)
            result.add(target, "forest", metrics.classification(test.classes, found), len(test))
        for run in said.runs:
            try:
                for seed in work.seeds(work.evaluation.runs[run].seeds):
                    reduced = [holding(one, kinds) for one in test.objects]
                    table = asked(work.model(run, seed, {}).loaded(), [one for one in reduced if one])
                    found = from_table(table, test, ["class"])["class"]
                    result.add(target, run, metrics.classification(test.classes, found), len(test), True)
            except NotMeasured as reason:
                result.missing.append(f"{run}, {target}: {reason}")


def _block(kind: str, train: Sample, test: Sample, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    if kind == "spectra":
        seen = pixels(train.objects)
        pca = PCA(min(COMPONENTS, len(train) - 1), random_state=1).fit(seen.filled())
        other = pixels(test.objects, seen.grid)
        return pca.transform(seen.filled()), pca.transform(np.where(np.isfinite(other.flux), other.flux, pca.mean_))
    if kind == "curves":
        return inputs.features(train), inputs.features(test)
    a, b = inputs.scalars(train, test)
    return a, b
