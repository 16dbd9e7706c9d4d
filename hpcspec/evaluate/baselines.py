"""What the model stands beside, on spectra and on tables: each is trained on one set of objects and predicts another.

A baseline for spectra sees them interpolated to one grid, flux over its median. The light curves' are in `curves`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.svm import SVC, SVR
from xgboost import XGBClassifier, XGBRegressor

from hpcspec.evaluate.inputs import Pixels

ALPHAS = np.geomspace(1e-1, 1e5, 7)
CANNON_STEPS = 30


@dataclass(frozen=True)
class Effort:
    """How much a baseline may do: trees of the boosted ones, epochs of networks, threads."""

    trees: int = 300
    epochs: int = 15
    threads: int = 2


QUICK = Effort(trees=20, epochs=2)


def boosted(classify: bool, seed: int, effort: Effort, share: float = 1.0, trees: int | None = None) -> Any:
    """XGBoost, for numbers or classes; `share` of the inputs may be used by one tree."""
    kind = XGBClassifier if classify else XGBRegressor
    return kind(n_estimators=trees or effort.trees, learning_rate=0.1 if trees is None else 0.03, max_depth=5, subsample=0.8,
                colsample_bytree=share, tree_method="hist", n_jobs=effort.threads, random_state=seed)  # fmt: skip


def _components(train: np.ndarray, test: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, ...]:
    """Both sets' principal components of the first, as many as it has at most."""
    count = min(count, len(train) - 1, train.shape[1])
    pca = PCA(count, svd_solver="randomized", random_state=seed).fit(train)
    return pca.transform(train), pca.transform(test)


def _ridge(classify: bool, seed: int, effort: Effort) -> Any:
    return make_pipeline(StandardScaler(), RidgeClassifierCV(ALPHAS) if classify else RidgeCV(ALPHAS))


def _vectors(classify: bool, seed: int, effort: Effort) -> Any:
    return SVC(C=10, cache_size=500) if classify else SVR(C=10, epsilon=0.05, cache_size=500)


Inputs = Callable[[Pixels, Pixels, int], tuple[np.ndarray, ...]]
SPECTRA: dict[str, tuple[Inputs, Callable[[bool, int, Effort], Any]]] = {
    "xgboost": (lambda a, b, seed: (a.flux, b.flux), lambda c, seed, effort: boosted(c, seed, effort, 0.1)),
    "pca-xgboost": (
        lambda a, b, seed: _components(a.filled(), b.filled(), 100, seed),
        lambda c, seed, effort: boosted(c, seed, effort, 0.5),
    ),
    "ridge": (lambda a, b, seed: (a.filled(), b.filled()), _ridge),
    "svm": (lambda a, b, seed: _components(a.filled(), b.filled(), 60, seed), _vectors),
    "svm-continuum": (lambda a, b, seed: _components(a.flattened()[0], b.flattened()[0], 60, seed), _vectors),
}  # fmt: skip
ONCE = frozenset({"ridge", "svm", "svm-continuum", "cannon", "xgboost"})  # another seed gives nearly the same, or takes minutes
ALWAYS_ONCE = frozenset({"gru"})  # with fewer labels, too


def fit_predict(kind: str, train: Pixels, labels: Mapping[str, np.ndarray], test: Pixels, seed: int,
                effort: Effort) -> dict[str, np.ndarray]:  # fmt: skip
    """Predictions of `test` for each label {name: (n,)} of `train`: numbers, NaN where unknown, or text, "" where unknown.

    Raises KeyError for an unknown baseline.
    """
    if kind == "cannon":
        return cannon(train, {k: v for k, v in labels.items() if v.dtype.kind == "f"}, test)
    inputs, estimator = SPECTRA[kind]
    covered = np.isfinite(train.flux).mean(0) > 0.5
    a, b = (Pixels(p.grid[covered], p.flux[:, covered], p.ivar[:, covered]) for p in (train, test))
    x, y = inputs(a, b, seed)
    return {name: fit_one(lambda c: estimator(c, seed, effort), x, values, y) for name, values in labels.items()}


def fit_one(estimator: Callable[[bool], Any], x: np.ndarray, label: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Predictions for `y` of an estimator trained on the rows of `x` that have a label (numbers standardised, classes coded)."""
    if label.dtype.kind == "f":
        known = np.isfinite(label)
        center, width = label[known].mean(), label[known].std() or 1.0
        return center + width * np.asarray(estimator(False).fit(x[known], (label[known] - center) / width).predict(y), np.float64)
    known = label != ""
    names, codes = np.unique(label[known], return_inverse=True)
    if len(names) == 1:
        return np.repeat(names, len(y))
    return names[np.asarray(estimator(True).fit(x[known], codes).predict(y), int)]


def cannon(train: Pixels, labels: Mapping[str, np.ndarray], test: Pixels) -> dict[str, np.ndarray]:
    """Labels of `test` by a quadratic model of each pixel's continuum-normalised flux in the labels, with a scatter per pixel
    (Ness et al. 2015, ApJ 808, 16): weighted least squares for the model, Levenberg–Marquardt for the labels."""
    names = list(labels)
    y = np.stack([labels[n] for n in names], 1)
    known = np.isfinite(y).all(1)
    center, width = y[known].mean(0), y[known].std(0)
    powers = PolynomialFeatures(2)
    design = powers.fit_transform((y[known] - center) / width)
    flux, ivar = (x[known] for x in train.flattened())
    scatter2 = np.full(flux.shape[1], 1e-4)
    ridge = 1e-3 * np.eye(design.shape[1])
    for _ in range(2):
        weight = ivar / (1 + ivar * scatter2)
        normal = np.einsum("np,na,nb->pab", weight, design, design, optimize=True) + ridge
        theta = np.linalg.solve(normal, np.einsum("np,na->pa", weight * flux, design, optimize=True)[..., None])[..., 0]
        excess = (flux - design @ theta.T) ** 2 - np.where(ivar > 0, 1 / np.maximum(ivar, 1e-12), 0)
        scatter2 = np.maximum(np.sum(excess * (ivar > 0), 0) / np.maximum((ivar > 0).sum(0), 1), 1e-6)
    flux, ivar = test.flattened()
    weight = ivar / (1 + ivar * scatter2)
    limits = np.quantile((y[known] - center) / width, [0, 1], axis=0) + [[-1.0], [1.0]]
    found = np.stack([_invert(powers, theta, limits, f, w) for f, w in zip(flux, weight, strict=True)])
    return {n: center[k] + width[k] * found[:, k] for k, n in enumerate(names)}


def _invert(
    powers: PolynomialFeatures, theta: np.ndarray, limits: np.ndarray, flux: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Standardised labels (k,) whose model is nearest to one spectrum, within limits (2, k)."""
    x, damping = np.zeros(limits.shape[1]), 1e-2
    exponents = powers.powers_

    def cost(at: np.ndarray) -> float:
        return float((weight * (flux - theta @ powers.transform(at[None])[0]) ** 2).sum())

    best = cost(x)
    for _ in range(CANNON_STEPS):
        slope = np.stack([np.where(exponents[:, k] > 0, exponents[:, k], 0) * np.prod(
            np.power(x, np.maximum(exponents - (np.arange(len(x)) == k), 0)), axis=1) for k in range(len(x))], 1)  # fmt: skip
        jacobian = theta @ slope
        gradient = jacobian.T @ (weight * (flux - theta @ powers.transform(x[None])[0]))
        hessian = (jacobian * weight[:, None]).T @ jacobian
        step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian) + 1e-9), gradient)
        trial = np.clip(x + step, *limits)
        value = cost(trial)
        if value < best:
            done, x, best, damping = best - value < 1e-6 * best, trial, value, damping / 5
            if done:
                break
        else:
            damping *= 10
            if damping > 1e6:
                break
    return x


def scalar_table(train: np.ndarray, label: np.ndarray, test: np.ndarray, seed: int, effort: Effort) -> np.ndarray:
    """XGBoost of 2000 trees on scalars (n, m), NaN where missing; for numbers or classes."""
    trees = 2000 if effort.trees >= 300 else effort.trees
    return fit_one(lambda c: boosted(c, seed, effort, trees=trees), train, label, test)


def forest(train: np.ndarray, label: np.ndarray, test: np.ndarray, seed: int, effort: Effort) -> np.ndarray:
    """A random forest's classes from features (n, m), NaN where missing; what the training set never has is left out."""
    made = RandomForestClassifier(2 * effort.trees, n_jobs=effort.threads, random_state=seed, class_weight="balanced_subsample")
    use = np.isfinite(train).any(0)
    middle = np.nanmedian(np.where(np.isfinite(train[:, use]), train[:, use], np.nan), axis=0)
    a, b = (np.where(np.isfinite(x[:, use]), x[:, use], middle) for x in (train, test))
    return fit_one(lambda _: made, a, label, b)


class Templates:
    """Principal components of training spectra, fitted to a spectrum's own pixels by weighted least squares: what a spectrum
    looks like where it was not seen."""

    def __init__(self, train: Pixels, count: int, seed: int):
        self._grid, filled = train.grid, train.filled()
        self._vectors = filled.mean(0)[None]
        if count:
            pca = PCA(min(count, len(filled) - 1), svd_solver="randomized", random_state=seed).fit(filled)
            self._vectors = np.vstack([self._vectors, pca.components_])

    def at(self, seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]], wavelength: np.ndarray) -> np.ndarray:
        """Flux (w,) expected at these wavelengths, given arms (wavelength, flux, ivar); NaN outside of the training's grid."""
        w, flux, ivar = (np.concatenate([arm[i] for arm in seen]) for i in range(3))
        use = (ivar > 0) & (w >= self._grid[0]) & (w <= self._grid[-1])
        if not use.any():
            return np.full(len(wavelength), np.nan)
        root = np.sqrt(ivar[use])
        design = np.stack([np.interp(w[use], self._grid, v) for v in self._vectors], 1) * root[:, None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            coefficients = np.linalg.lstsq(design, flux[use] * root, rcond=1e-6)[0]
        return np.stack([np.interp(wavelength, self._grid, v, np.nan, np.nan) for v in self._vectors], 1) @ coefficients
