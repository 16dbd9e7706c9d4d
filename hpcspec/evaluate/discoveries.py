"""What is found among objects that nobody pointed at: wrong labels, anomalies, and subclasses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hpcspec.evaluate import metrics, plots
from hpcspec.evaluate.astrom3 import MODALITIES, blocks, by_kind, holding
from hpcspec.evaluate.inputs import NotMeasured, Sample
from hpcspec.evaluate.model import column, rows_of
from hpcspec.evaluate.predict import probabilities
from hpcspec.evaluate.report import Result
from hpcspec.evaluate.spec import Experiment
from hpcspec.evaluate.workspace import Workspace

FEWEST = 8  # objects of a subclass


def _tables(work: Workspace, said: Experiment, run: str, seed: int, test: Sample) -> tuple[Any, Any, np.ndarray]:
    """The model, its catalogue of the test objects, and the row of each."""
    data, model = work.evaluation.data[said.data], work.model(run, seed, {})
    folder = said.folders[0]
    table = model.catalogue(data.survey, work.folder(said.data, folder), f"{said.data}-{folder}")
    return model, table, rows_of(table, test.ids)


def features_of(work: Workspace, said: Experiment, use: Sequence[np.ndarray] = ()) -> tuple[np.ndarray, np.ndarray]:
    """What baselines see of the training and the test objects, or of these (masks): (n, m), NaN where missing."""
    found = blocks(work, said.data, said.folders[0]).values()
    a, b = (np.hstack([block[i] for block in found]) for i in range(2))
    return (a[use[0]], b[use[1]]) if len(use) else (a, b)


def mislabels(work: Workspace, said: Experiment, result: Result) -> None:
    """Labels that were made wrong (column `mislabelled`), ranked by 1 − the probability of the given label: the share of right
    finds among as many as there are. Uses data, runs, seeds, folders (the first, which runs don't learn from); the baseline
    `forest` is trained on the training set, `forest, out of bag` on both sets and judges each object by the trees that
    haven't seen it."""
    train, test = work.sample(said.data, "train"), work.sample(said.data, said.folders[0])
    use = [part.known(["class"]) for part in (train, test)]
    train, test = (part[known] for part, known in zip((train, test), use, strict=True))
    wrong = np.array([m not in ("", "0") for m in test.column("mislabelled")])
    if not wrong.any():
        raise NotMeasured(f"no object of {said.data} is marked in the column mislabelled")
    names = sorted(set(train.classes.tolist()))
    given = np.array([names.index(c) if c in names else -1 for c in test.classes.tolist()])

    def found(method: str, probability: np.ndarray, model: bool) -> None:
        own = np.where(given >= 0, np.nan_to_num(probability)[np.arange(len(test)), given], 0.0)
        k = int(wrong.sum())
        figures = {"precision": metrics.precision_at(1 - own, wrong, k), "AUROC": metrics.auroc(1 - own, wrong),
                   "precision, chance": float(wrong.mean())}  # fmt: skip
        result.add("mislabelled", method, figures, len(test), model)

    if "forest" in said.baselines:
        a, b = features_of(work, said, use)
        codes = np.array([names.index(c) for c in train.classes.tolist()])
        for seed in work.seeds(said.seeds):
            made = RandomForestClassifier(2 * work.effort.trees, n_jobs=work.effort.threads, random_state=seed, oob_score=True)
            found("forest", _columns(made.fit(a, codes), made.predict_proba(b), len(names)), False)
            named = given >= 0
            made.fit(np.vstack([a, b[named]]), np.r_[codes, given[named]])
            bagged = np.zeros((len(test), len(names)))
            bagged[named] = _columns(made, made.oob_decision_function_[len(a) :], len(names))
            found("forest, out of bag", bagged, False)
    for run in said.runs:
        try:
            for seed in work.seeds(work.evaluation.runs[run].seeds):
                _, table, rows = _tables(work, said, run, seed, test)
                found(run, probabilities(table, rows, names), True)
        except NotMeasured as reason:
            result.missing.append(f"{run}: {reason}")


def _columns(made: RandomForestClassifier, probability: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros((len(probability), count))
    out[:, made.classes_] = np.nan_to_num(probability)
    return out


def anomalies(work: Workspace, said: Experiment, result: Result) -> None:
    """Injected anomalies (column `anomaly`, their kinds in `anomaly_kind`) told from the others: AUROC of the catalogue's
    `anomaly`, of the disagreement of kinds of measurement (the least cosine between an object's embeddings by each), and of
    the higher rank of both. Uses data, runs, seeds, folders (the first); the baseline `isolation forest` sees features."""
    test = work.sample(said.data, said.folders[0])
    odd, kinds = np.array([m not in ("", "0") for m in test.column("anomaly")]), test.column("anomaly_kind")
    if not odd.any():
        raise NotMeasured(f"no object of {said.data} is marked in the column anomaly")

    def found(method: str, score: np.ndarray, model: bool) -> None:
        for name in ["", *sorted(set(kinds[odd].tolist()) - {""})]:
            use = ~odd | (kinds == name) if name else np.ones(len(odd), bool)
            target = f"anomalies of {name}" if name else "anomalies"
            result.add(target, method, {"AUROC": metrics.auroc(score[use], odd[use])}, int(use.sum()), model)

    if "isolation forest" in said.baselines:
        a, b = features_of(work, said)
        for seed in work.seeds(said.seeds):
            forest = IsolationForest(n_estimators=2 * work.effort.trees, n_jobs=work.effort.threads, random_state=seed)
            made = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), forest).fit(a)
            found("isolation forest", -made.score_samples(b), False)
    for run in said.runs:
        try:
            for seed in work.seeds(work.evaluation.runs[run].seeds):
                model, table, rows = _tables(work, said, run, seed, test)
                far = np.nan_to_num(column(table, "anomaly", rows).astype(np.float64), nan=np.inf)
                found(run, np.minimum(far, 1e9), True)
                apart = disagreement(model.loaded(), test)
                found(f"{run}, disagreement", apart, True)
                found(f"{run}, both", np.maximum(rankdata(far), rankdata(apart)), True)
        except NotMeasured as reason:
            result.missing.append(f"{run}: {reason}")


def disagreement(model: Any, test: Sample) -> np.ndarray:
    """(n,) 1 − the least cosine between an object's embeddings by its kinds of measurement, standardised over the objects for
    each pair of kinds first; 0 for those with one kind alone."""
    out = np.zeros(len(test))
    having = {k: np.array([holding(one, (k,)) is not None for one in test.objects]) for k in MODALITIES}
    vectors = {k: np.full((len(test), model.config.model.width), np.nan) for k in having}
    for kind, there in having.items():
        if there.any():
            vectors[kind][there] = by_kind(model, test[there], kind)
    for a, b in itertools.combinations(having, 2):
        both = having[a] & having[b]
        if both.sum() > 1:
            cosine = (vectors[a][both] * vectors[b][both]).sum(1)
            out[both] = np.maximum(out[both], (cosine.mean() - cosine) / (cosine.std() or 1.0))
    return out


def subclasses(work: Workspace, said: Experiment, result: Result) -> None:
    """Subclasses (column `subclass`) that nobody told the model of, found by k-means of the embeddings within each class that
    has several: adjusted Rand index, and purity beside that of one cluster. Uses data, runs, seeds, folders (the first); the
    baseline `features` clusters what the forest sees."""
    test = work.sample(said.data, said.folders[0])
    truth, kind = test.column("subclass"), test.classes
    groups = {}
    for name in sorted(set(kind.tolist()) - {""}):
        parts, counts = np.unique(truth[(kind == name) & (truth != "")], return_counts=True)
        if len(parts) > 1 and counts.min() >= (2 if work.quick else FEWEST):
            groups[name] = np.flatnonzero((kind == name) & (truth != ""))
    if not groups:
        raise NotMeasured(f"no class of {said.data} has two subclasses of {FEWEST} objects in the column subclass")

    def found(method: str, vectors: np.ndarray, model: bool, seed: int) -> None:
        scores = {name: clusters(vectors[rows], truth[rows], seed) for name, rows in groups.items()}
        for name, figures in scores.items():
            result.add(name, method, figures, len(groups[name]), model)
        mean = {f: float(np.mean([s[f] for s in scores.values()])) for f in next(iter(scores.values()))}
        result.add("all, mean", method, mean, sum(map(len, groups.values())), model)

    if "features" in said.baselines:
        made = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
        a, b = features_of(work, said)
        scaled = np.clip(made.fit(a).transform(b), -5, 5)
        for seed in work.seeds(said.seeds):
            found("features", scaled, False, seed)
    for run in said.runs:
        try:
            for seed in work.seeds(work.evaluation.runs[run].seeds):
                _, table, rows = _tables(work, said, run, seed, test)
                if (rows < 0).any():
                    raise NotMeasured(f"the catalogue lacks objects of {said.data}")
                vectors = np.asarray(table["embedding"], np.float64)[rows]
                found(run, vectors, True, seed)
                if run == said.runs[0] and not result.plots:
                    name = work.output / f"{result.name}-map.png"
                    result.plots.append(plots.embedding_map(name, vectors, {"class": kind}))
        except NotMeasured as reason:
            result.missing.append(f"{run}: {reason}")


def clusters(vectors: np.ndarray, truth: np.ndarray, seed: int) -> dict[str, float]:
    """Figures of as many clusters of vectors (n, d) as there are names in truth (n,)."""
    names, codes = np.unique(truth, return_inverse=True)
    scaled = StandardScaler().fit_transform(vectors)
    found = KMeans(len(names), n_init=10, random_state=seed).fit_predict(scaled)
    return {"adjusted Rand index": float(adjusted_rand_score(codes, found)), "purity": metrics.purity(codes, found),
            "purity, one cluster": float(np.bincount(codes).max() / len(codes))}  # fmt: skip
