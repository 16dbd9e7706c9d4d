"""The figures that evaluations report. Arguments are truths and predictions (n,); what is not finite must be left out before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from astropy.stats import mad_std
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from hpcspec.adapt.calibration import NORMAL

CATASTROPHIC = 0.0033  # of Δz/(1+z): 1000 km/s


def regression(truth: np.ndarray, value: np.ndarray) -> dict[str, float]:
    """Robust scatter 1.4826·MAD about the median, plain standard deviation, and median of value − truth."""
    residual = np.asarray(value, np.float64) - truth
    return {"MAD": float(mad_std(residual)), "std": float(residual.std()), "bias": float(np.median(residual))}


def coverage(truth: np.ndarray, value: np.ndarray, error: np.ndarray, wide: np.ndarray | None = None) -> dict[str, float]:
    """Share of the truths within one error and within the half width of the 95 % interval, that of a normal distribution if
    none is given."""
    off = np.abs(value - truth)
    within = off <= (NORMAL * error if wide is None else wide)
    return {"cover 68 %": float((off <= error).mean()), "cover 95 %": float(within.mean())}


def bound_ratio(truth: np.ndarray, value: np.ndarray, bound: np.ndarray) -> dict[str, float]:
    """1.4826·MAD of (value − truth)/bound: 1 is an estimator at each object's Cramér–Rao bound."""
    return {"scatter / bound": float(mad_std((value - truth) / bound))}


def classification(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy, F1 averaged over the classes that occur in the truth, and recall averaged over them."""
    truth, predicted = np.asarray(truth, str), np.asarray(predicted, str)
    present = sorted(set(truth.tolist()))
    recall = recall_score(truth, predicted, labels=present, average="macro", zero_division=0)
    macro = f1_score(truth, predicted, labels=present, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, predicted)), "macro-F1": float(macro), "balanced accuracy": float(recall)}


def redshift(truth: np.ndarray, value: np.ndarray) -> dict[str, float]:
    """NMAD of Δz/(1+z), 1.4826·median|Δz/(1+z) − median|, and the share beyond 1000 km/s."""
    relative = (np.asarray(value, np.float64) - truth) / (1 + truth)
    return {"NMAD": float(mad_std(relative)), "outliers": float((np.abs(relative) > CATASTROPHIC).mean())}


def reduced_chi2(flux: np.ndarray, model: np.ndarray, ivar: np.ndarray, parameters: int = 0) -> float:
    """χ² per degree of freedom over the pixels (n,) with ivar > 0; NaN where there are none."""
    good = ivar > 0
    freedom = int(good.sum()) - parameters
    residual = flux[good].astype(np.float64) - model[good]
    return float((residual**2 * ivar[good]).sum() / freedom) if freedom > 0 else float("nan")


def retrieval(vectors: np.ndarray, keys: np.ndarray, k: int = 1, among: tuple[np.ndarray, np.ndarray] | None = None,
              of: np.ndarray | None = None) -> float:  # fmt: skip
    """Share of the vectors (n, d) with one of their own key among the k nearest (by cosine) of `among`, (m, d) and keys (m,).
    Without it, of all the others, and only those count whose key occurs twice, and of them those `of` (n,) bool; NaN if none
    does."""
    vectors, keys = np.asarray(vectors), np.asarray(keys)
    others, theirs = (vectors, keys) if among is None else among
    names, count = np.unique(keys, return_counts=True)
    asked = np.isin(keys, names[count > 1]) if among is None else np.ones(len(keys), bool)
    asked &= True if of is None else of
    if not asked.any():
        return float("nan")
    wanted = min(k + (among is None), len(others))
    rows = NearestNeighbors(n_neighbors=wanted, metric="cosine", algorithm="brute").fit(others).kneighbors(
        vectors[asked], return_distance=False)  # fmt: skip
    own = rows == np.flatnonzero(asked)[:, None] if among is None else np.zeros(rows.shape, bool)
    own[:, -1] |= ~own.any(1) if among is None else False  # an equal of it came first: one too many was asked for
    return float(((np.asarray(theirs)[rows] == keys[asked][:, None]) & ~own).any(1).mean())


def precision_at(score: np.ndarray, is_true: np.ndarray, k: int) -> float:
    """Share of true ones among the k of the highest score."""
    return float(np.asarray(is_true, bool)[np.argsort(-np.asarray(score), kind="stable")[:k]].mean())


def auroc(score: np.ndarray, is_true: np.ndarray) -> float:
    """Area under the receiver operating characteristic."""
    return float(roc_auc_score(is_true, score))


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over the seeds; NaN for the deviation of one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def purity(truth: np.ndarray, cluster: np.ndarray) -> float:
    """Share of the objects that are of the most frequent kind of their own cluster; both (n,) are codes from 0."""
    table = np.zeros((int(np.max(truth)) + 1, int(np.max(cluster)) + 1))
    np.add.at(table, (truth, cluster), 1)
    return float(table.max(0).sum() / len(truth))


def chi2_each(value: np.ndarray, model: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(n,) mean of ((value − model)/error)² over the columns (n, m) with a finite value and a positive error; NaN for none."""
    good = np.isfinite(value) & np.isfinite(model) & (error > 0)
    square = np.where(good, (np.where(good, value, 0) - np.where(good, model, 0)) / np.where(good, error, 1), 0) ** 2
    count = good.sum(1)
    return np.where(count > 0, square.sum(1) / np.maximum(count, 1), np.nan)
