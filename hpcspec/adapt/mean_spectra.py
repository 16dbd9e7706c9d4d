"""What spectra of stars with given labels look like on average, learned from labelled ones: a generative model in the manner of
The Cannon (Ness et al. 2015, ApJ 808, 16), with radial basis functions of the labels in the place of a quadratic.

n objects, K labels, F terms, B bins of ln λ.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from hpcspec.stream.batch import Patches
from hpcspec.training.ranks import Ranks

BINS = 16384
CENTRES, PER_CENTRE = 800, 3  # basis functions at most, and at least so many objects for each
FITTED = 8192  # objects at most, over all ranks
FLOOR = 4e-3  # of a spectrum's error, in units of its local level: the brightest stars must not decide alone
RIDGE = 1e-2
ROUNDS = 3  # of filling pixels that are bad with what was found without them
COMPONENTS = 64  # of the mean spectra, that are kept
FEWEST = 50  # good pixels of a bin


class MeanSpectra:
    """Lines (flux over its local level, -1) and local level of spectra as functions of K labels, which are given in units of
    their spread about their centre; `lines` and `level` are (…, B) arrays on `places`' bins."""

    def __init__(self, labels: Mapping[int, np.ndarray], spectra: Mapping[int, Patches], ranks: Ranks):
        """labels: of the training objects of all ranks, by number; spectra: of this rank's."""
        mine = dict(list(spectra.items())[: FITTED // ranks.size])
        logs = [np.log(wavelengths(s)) for s in mine.values()]
        ends = [(x[there(s)].min(), x[there(s)].max()) for x, s in zip(logs, mine.values(), strict=True)]
        steps = [float(np.median(s.coordinates[:, 1] / s.coordinates[:, 0])) for s in mine.values()]
        every = ranks.gather([(low, high, step) for (low, high), step in zip(ends, steps, strict=True)])
        low, high, step = np.array([x for part in every for x in part]).T
        self._first, self._step = float(low.min()), max(float(np.median(step)), float(high.max() - low.min()) / BINS)
        self.bins = int((high.max() - self._first) / self._step) + 2
        of_all = np.stack(list(labels.values()))
        rng = np.random.default_rng(0)
        self._centres = of_all[np.sort(rng.choice(len(of_all), min(CENTRES, len(of_all) // PER_CENTRE), replace=False))]
        self._fit(np.stack([labels[n] for n in mine]) if mine else of_all[:0], list(mine.values()), ranks)

    def _terms(self, labels: np.ndarray) -> np.ndarray:
        """(…, F): 1, the labels, and the basis functions."""
        x = np.asarray(labels, np.float32)
        distance2 = ((x[..., None, :] - self._centres.astype(np.float32)) ** 2).sum(-1)
        ones = np.ones((*x.shape[:-1], 1), np.float32)
        return np.concatenate([ones, np.clip(x, -6, 6), np.exp(-0.5 * distance2 / x.shape[-1])], axis=-1)

    def _fit(self, labels: np.ndarray, spectra: list[Patches], ranks: Ranks) -> None:
        values = np.zeros((len(spectra), 2 * self.bins), np.float32)  # lines, then level
        seen = np.zeros((len(spectra), self.bins), bool)
        weight = np.zeros(len(spectra), np.float32)
        for row, s in enumerate(spectra):
            good = np.isfinite(s.sigma)
            at = np.rint(self.places(s)[good]).astype(int)
            values[row, at], values[row, self.bins + at] = s.values[..., 2][good], level_of(s)[good]
            seen[row, at] = True
            weight[row] = 1 / (np.median(s.sigma[good] / np.maximum(np.abs(level_of(s)[good]), 0.1)) ** 2 + FLOOR**2)
        terms = self._terms(labels)
        total, count, bins = ranks.sum_tensors([torch.tensor([weight.sum()]), torch.tensor([float(len(weight))]),
                                                torch.from_numpy(seen.sum(0).astype(np.float32))])  # fmt: skip
        weighted = terms * (weight / (total / count).item())[:, None]
        (left,) = ranks.sum_tensors([torch.from_numpy(weighted.T @ terms).double()])
        ridge = torch.full((len(left),), RIDGE, dtype=torch.float64)
        ridge[: 1 + labels.shape[1]] *= 1e-3
        factor = torch.linalg.cholesky(left + torch.diag(ridge))
        both, coefficients = np.tile(seen, 2), np.zeros((len(left), 2 * self.bins), np.float32)
        for round_ in range(ROUNDS):
            if round_:
                values = np.where(both, values, terms @ coefficients)
            (right,) = ranks.sum_tensors([torch.from_numpy(weighted.T @ values)])
            coefficients = torch.cholesky_solve(right.double(), factor).float().numpy()
        enough = bins.numpy() >= min(FEWEST, 0.5 * bins.max().item())
        self._enough = enough
        halves = (torch.from_numpy(np.where(enough, x, np.float32(0))) for x in np.split(coefficients, 2, axis=1))
        self._lines, self._level = (_components(x, factor.float()) for x in halves)

    def places(self, spectra: Patches) -> np.ndarray:
        """(t, P) fractional bins of pixels."""
        return ((np.log(wavelengths(spectra)) - self._first) / self._step).clip(0, self.bins - 1)

    def lines(self, labels: np.ndarray) -> np.ndarray:
        """(…, B) for labels (…, K); 0 where there were too few pixels to learn from."""
        terms, spectra = self._lines
        return self._terms(labels) @ terms @ spectra

    def level(self, labels: np.ndarray) -> np.ndarray:
        """(…, B) for labels (…, K), in units of the spectrum's median; 1 where there were too few pixels to learn from."""
        terms, spectra = self._level
        return np.where(self._enough, self._terms(labels) @ terms @ spectra, np.float32(1))


def _components(coefficients: torch.Tensor, factor: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(F, c) and (c, B), whose product is coefficients (F, B) but for what varies least among the training objects, whose
    terms have the covariance factor·factorᵀ (F, F)."""
    varied = factor.T @ coefficients
    _, vectors = torch.linalg.eigh(varied @ varied.T)
    most = vectors[:, -COMPONENTS:]
    return torch.linalg.solve_triangular(factor.T, most, upper=True).numpy(), (most.T @ varied).numpy()


def level_of(spectra: Patches) -> np.ndarray:
    """(t, P) local level of the flux, from the flux and its ratio to the level; the flux itself where that tells nothing."""
    over = 1 + spectra.values[..., 2]
    return spectra.values[..., 0] / np.where(np.abs(over) > 0.1, over, np.float32(1))


def there(spectra: Patches) -> np.ndarray:
    """(t, P): pixels of a patch, good or bad; the last of an arm may have fewer than it has room for."""
    used = np.isfinite(spectra.sigma) | (spectra.values[..., 0] != 0)
    return np.flip(np.maximum.accumulate(np.flip(used, 1), 1), 1)


def wavelengths(spectra: Patches) -> np.ndarray:
    """(t, P) Å, from the patches' mean wavelengths and steps."""
    size = there(spectra).sum(1)
    middle, step = spectra.coordinates.astype(np.float64).T
    return middle[:, None] + step[:, None] * (np.arange(spectra.sigma.shape[1]) - (size[:, None] - 1) / 2)
