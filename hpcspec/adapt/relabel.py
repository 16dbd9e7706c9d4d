"""Training spectra moved to other labels, so that a head can't learn which noise belongs to which star.

How the mean spectrum depends on the labels is fitted pixel by pixel as a polynomial (Ness et al. 2015, ApJ 808, 16). A
spectrum is moved some of the way to the labels of one that is like it (as Yao et al. 2022, arXiv 2210.05775, mix them) by the
ratio of the two mean spectra; its own noise, and all that the labels don't explain, stays. n objects, K parameters, F terms,
B bins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

from hpcspec.adapt.heads import REDSHIFT, Task
from hpcspec.adapt.labels import LabelSet
from hpcspec.stream.batch import Patches, Tokens
from hpcspec.stream.patches import LOCAL_HALF, LOG_ERROR
from hpcspec.stream.vocabulary import OBJECT, SPECTRA
from hpcspec.training.ranks import Ranks

TERMS, PER_TERM = 36, 10  # at most so many terms, and at least so many objects for each
BINS = 16384
NEARBY, MOST_NEARBY = 1 / 3, 1000  # share of the objects, and how many at most, whose labels one may be moved towards
FITTED = 8192  # objects at most, over all ranks
FLOOR = 0.03  # of a pixel's error, in units of the flux's median: bright stars must not decide alone
RIDGE = 1e-6
FACTOR = 3.0  # a ratio beyond this, or below its inverse, is the polynomial's mistake


class Relabel:
    """Moves spectra of this rank's objects to labels in their neighbourhood; `usable` is False where there is too little to
    learn it from."""

    def __init__(self, items: Mapping[int, Tokens], labels: LabelSet, task: Task, train: np.ndarray, kinds: np.ndarray,
                 ranks: Ranks):  # fmt: skip
        self._columns = [k for k, p in enumerate(task.parameters) if p != REDSHIFT]
        names = [task.parameters[k] for k in self._columns]
        self._known = np.array([np.isfinite([labels.values[p][n] for p in names]).all() for n in train], bool) & bool(names)
        self._numbers = train[self._known]
        self._row = {n: i for i, n in enumerate(self._numbers.tolist())}
        self._kinds, self._count = kinds, len(task.parameters)
        self.usable = len(self._numbers) >= PER_TERM * (len(names) + 1) > PER_TERM
        if not self.usable:
            return
        self._center, self._spread = (np.array([x[k] for k in self._columns]) for x in (task.center, task.spread))
        self._labels = np.stack([labels.values[p][self._numbers] for p in names], axis=1)
        self._tree = cKDTree((self._labels - self._center) / self._spread)
        self._powers = powers(len(names), min(TERMS, len(self._numbers) // PER_TERM))
        mine = [n for n in items if n in self._row and self._only_spectra(items[n])][: FITTED // ranks.size]
        self.usable = ranks.any(bool(mine))[0]
        if self.usable:
            self._fit({n: items[n] for n in mine}, ranks)

    def _only_spectra(self, tokens: Tokens) -> bool:
        of_scalars = self._kinds[tokens.scalars.name]
        return bool(len(tokens.spectra[0])) and not len(tokens.curves[0]) and bool(np.isin(of_scalars, (OBJECT, SPECTRA)).all())

    def _terms(self, labels: np.ndarray) -> np.ndarray:
        """(…, F) terms of labels (…, K)."""
        x = np.clip((labels - self._center) / (3 * self._spread), -2, 2)
        return np.prod(x[..., None, :] ** self._powers, axis=-1)

    def _fit(self, items: Mapping[int, Tokens], ranks: Ranks) -> None:
        spectra = [one.spectra for one in items.values()]
        ends = np.concatenate([np.log(_wavelengths(s)[_there(s)]) for s in spectra]) if spectra else np.zeros(0)
        steps = np.concatenate([s.coordinates[:, 1] / s.coordinates[:, 0] for s in spectra]) if spectra else np.zeros(0)
        every = [x for x in ranks.gather((ends.min(), ends.max(), float(np.median(steps))) if len(ends) else None) if x]
        low, high = min(x[0] for x in every), max(x[1] for x in every)
        self._step = max(float(np.median([x[2] for x in every])), (high - low) / BINS)
        self._first, bins = low, int((high - low) / self._step) + 2
        terms = self._terms(self._labels)
        left, right = np.zeros((len(self._powers) ** 2, bins)), np.zeros((len(self._powers), bins))
        numbers = list(items)
        for start in range(0, len(numbers), 256):
            some = numbers[start : start + 256]
            flux, weight = np.zeros((2, len(some), bins), np.float32)
            for row, n in enumerate(some):
                s = items[n].spectra
                good = np.isfinite(s.sigma)
                at = np.rint(self._places(s)[good]).astype(int)
                flux[row, at], weight[row, at] = s.values[..., 0][good], 1 / (s.sigma[good] ** 2 + FLOOR**2)
            x = terms[[self._row[n] for n in some]].astype(np.float32)
            left += (x[:, :, None] * x[:, None]).reshape(len(some), -1).T @ weight
            right += x.T @ (weight * flux)
        left, right = (x.numpy() for x in ranks.sum_tensors([torch.from_numpy(left), torch.from_numpy(right)]))
        seen = left[0] > 0  # the first term is 1
        matrices = left.T.reshape(bins, len(self._powers), -1)[seen]
        matrices += RIDGE * np.einsum("bff->b", matrices)[:, None, None] * np.eye(len(self._powers))
        coefficients = np.zeros((len(self._powers), bins))
        coefficients[:, seen] = np.linalg.solve(matrices, right.T[seen][..., None])[..., 0].T
        width = gaussian_filter1d(seen.astype(float), LOCAL_HALF, mode="constant")
        level = gaussian_filter1d(coefficients * seen, LOCAL_HALF, axis=1, mode="constant") / np.maximum(width, 1e-6)
        self._mean, self._level = coefficients.astype(np.float32), np.where(seen, level, 0).astype(np.float32)

    def _places(self, spectra: Patches) -> np.ndarray:
        """(t, P) fractional bins of pixels."""
        return ((np.log(_wavelengths(spectra)) - self._first) / self._step).clip(0, None)

    def __call__(self, number: int, tokens: Tokens, rng: np.random.Generator, renew: bool = False) -> tuple[Tokens, np.ndarray]:
        """The object's tokens, moved, and by how much each parameter is (K of the task,), in its unit: 0 where it can't be.

        With `renew` lines and noise are new, those of the mean spectrum and drawn from the errors, on the object's own local
        level.
        """
        by, row = np.zeros(self._count), self._row.get(number)
        if not self.usable or row is None or not self._only_spectra(tokens):
            return tokens, by
        now, nearby = self._labels[row], min(MOST_NEARBY, int(NEARBY * len(self._labels)))
        _, (other,) = self._tree.query((now - self._center) / self._spread, [int(rng.integers(2, nearby + 2))])  # 1 is itself
        new = now + rng.random() * (self._labels[other] - now)
        before, after = self._terms(np.stack([now, new])).astype(np.float32)
        flux, level = (_ratio(after @ x, before @ x) for x in (self._mean, self._level))
        s, grid = tokens.spectra, np.arange(len(flux))
        at = self._places(s)
        ratio, of_level = (np.interp(at, grid, x).astype(np.float32) for x in (flux, level))
        values, good = s.values.copy(), np.isfinite(s.sigma)
        if renew:
            own = values[..., 0] / np.where(np.abs(1 + values[..., 2]) > 0.1, 1 + values[..., 2], 1) * of_level
            lines = np.interp(at, grid, _ratio(after @ self._mean, after @ self._level) - 1).astype(np.float32)
            noise = np.where(good, np.minimum(s.sigma, 10 ** LOG_ERROR[1]), 0) * rng.standard_normal(good.shape, np.float32)
            values[..., 0] = np.where(good, own * (1 + lines) + noise, own)
            values[..., 2] = np.where(good, lines + noise / np.maximum(np.abs(own), 0.1), values[..., 2])
        else:
            values[..., 0] *= np.where(good, ratio, of_level)  # bad pixels are at their local level
            values[..., 2] = np.where(good, (1 + values[..., 2]) * ratio / of_level - 1, values[..., 2])
        by[self._columns] = new - now
        return Tokens(tokens.scalars, s._replace(values=values), tokens.curves), by


def powers(parameters: int, most: int) -> np.ndarray:
    """(F, parameters): exponents of the polynomial of the highest degree that has at most `most` terms; the first is 1."""
    degree = 1
    while degree < 4 and math.comb(parameters + degree + 1, parameters) <= most:
        degree += 1
    found = [p for p in itertools.product(range(degree + 1), repeat=parameters) if sum(p) <= degree]
    return np.array(sorted(found, key=lambda p: (sum(p), p)))


def _ratio(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    good = (after > 0) & (before > 0)
    return np.clip(np.where(good, after, 1) / np.where(good, before, 1), 1 / FACTOR, FACTOR)


def _there(spectra: Patches) -> np.ndarray:
    """(t, P): pixels of a patch, good or bad; the last of an arm may have fewer than it has room for."""
    used = np.isfinite(spectra.sigma) | (spectra.values[..., 0] != 0)
    return np.flip(np.maximum.accumulate(np.flip(used, 1), 1), 1)


def _wavelengths(spectra: Patches) -> np.ndarray:
    """(t, P) Å, from the patches' mean wavelengths and steps."""
    size = _there(spectra).sum(1)
    middle, step = spectra.coordinates.astype(np.float64).T
    return middle[:, None] + step[:, None] * (np.arange(spectra.sigma.shape[1]) - (size[:, None] - 1) / 2)
