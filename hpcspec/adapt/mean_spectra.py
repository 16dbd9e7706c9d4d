"""What spectra of stars with given labels look like on average, learned from labelled ones: a generative model in the manner of
The Cannon (Ness et al. 2015, ApJ 808, 16), with radial basis functions of the labels in the place of a quadratic.

n objects, K labels, F terms, B bins of ln λ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from hpcspec.stream.batch import Patches
from hpcspec.training.ranks import Ranks

BINS = 16384
CENTRES, PER_CENTRE = 800, 3  # basis functions at most, and at least so many objects for each
FITTED = 8192  # objects at most, over all ranks
FLOOR = 4e-3  # of a spectrum's error, in units of its local level: the brightest stars must not decide alone
LEAST = 1e-3  # of what noise doesn't explain
AT_ONCE = 2048  # bins
ROUNDS = 3  # of filling pixels that are bad or worse than others with what was found without them
FARTHEST = 6.0  # spreads from the middle, to which the linear terms go on
FEWEST = 50  # good pixels of a bin


class Shape(NamedTuple):
    """Of mean spectra: the width of the basis functions, in units of √K spreads; the ridge, how little their coefficients may
    be; how many components of the mean spectra are kept, without the noise of the rest."""

    width: float = 1.0
    ridge: float = 1e-4
    components: int = 32


class MeanSpectra:
    """Lines (flux over its local level, -1) and local level of spectra as functions of K labels, which are given in units of
    their spread about their centre; `lines` and `level` are (…, B) arrays on `places`' bins."""

    def __init__(self, labels: Mapping[int, np.ndarray], spectra: Mapping[int, Patches], ranks: Ranks, shape: Shape,
                 rough: bool = False):  # fmt: skip
        """labels: of the training objects of all ranks, by number; spectra: of this rank's; rough: to see what a shape is worth,
        without levels."""
        self.width = shape.width
        mine = dict(list(spectra.items())[: FITTED // ranks.size])
        logs = [log_wavelengths(s) for s in mine.values()]
        ends = [(x[there(s)].min(), x[there(s)].max()) for x, s in zip(logs, mine.values(), strict=True)]
        steps = [float(np.median(s.coordinates[:, 1] / s.coordinates[:, 0])) for s in mine.values()]
        every = ranks.gather([(low, high, step) for (low, high), step in zip(ends, steps, strict=True)])
        low, high, step = np.array([x for part in every for x in part]).T
        self.first, self.step = float(low.min()), max(float(np.median(step)), float(high.max() - low.min()) / BINS)
        self.bins = int((high.max() - self.first) / self.step) + 2
        of_all = np.stack(list(labels.values()))
        rng = np.random.default_rng(0)
        self.centres = of_all[np.sort(rng.choice(len(of_all), min(CENTRES, len(of_all) // PER_CENTRE), replace=False))]
        self._fit(np.stack([labels[n] for n in mine]) if mine else of_all[:0], list(mine.values()), ranks, shape, rough)

    def _terms(self, labels: np.ndarray) -> np.ndarray:
        """(…, F) f8."""
        x, centres = (torch.from_numpy(np.asarray(x, np.float64)) for x in (labels, self.centres))
        return basis(x, centres, self.width).numpy()

    @property
    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """Lines as products of (F, C) and (C, B)."""
        return self._lines

    def _fit(self, labels: np.ndarray, spectra: list[Patches], ranks: Ranks, shape: Shape, rough: bool) -> None:
        values = np.zeros((len(spectra), 2 * self.bins), np.float32)  # lines, then level
        trust = np.zeros((len(spectra), self.bins), np.float32)
        weight = np.zeros(len(spectra), np.float32)
        for row, s in enumerate(spectra):
            good = np.isfinite(s.sigma)
            at = np.rint(self.places(s)[good]).astype(int)
            values[row, at], values[row, self.bins + at] = s.values[..., 2][good], level_of(s)[good]
            error = s.sigma[good] / np.maximum(np.abs(level_of(s)[good]), 0.1)
            weight[row] = 1 / (np.median(error) ** 2 + FLOOR**2)
            trust[row, at] = np.minimum(1, 1 / (error**2 + FLOOR**2) / weight[row])
        sums = [weight.sum(keepdims=True), np.array([len(weight)], np.float32), (trust > 0).sum(0, np.float32), trust.sum(0),
                (values * np.tile(trust, 2)).sum(0)]  # fmt: skip
        total, count, bins, trusted, summed = (x.numpy() for x in ranks.sum_tensors([torch.from_numpy(x) for x in sums]))
        middle = (summed / np.maximum(np.tile(trusted, 2), 1)).astype(np.float64)
        weight = (weight / (total / count)).astype(np.float64)
        terms = self._terms(labels)  # double: the basis functions overlap, their sum is the difference of large numbers
        weighted = terms * weight[:, None]
        (left,) = ranks.sum_tensors([torch.from_numpy(weighted.T @ terms)])
        free = 1 + labels.shape[1]
        added = torch.full((len(left),), shape.ridge, dtype=torch.float64)
        added[:free] *= 1e-3
        factor = torch.linalg.cholesky(left + torch.diag(added))
        coefficients = np.zeros((len(left), 2 * self.bins))
        wanted = self.bins if rough else 2 * self.bins
        for some in np.array_split(np.arange(wanted), max(1, wanted // AT_ONCE)):
            part, model = values[:, some].astype(np.float64), middle[some]
            for _ in range(ROUNDS - rough):  # of bad pixels, and ones worse than others, with what was found before
                mixed = model + trust[:, some % self.bins] * (part - model)
                (right,) = ranks.sum_tensors([torch.from_numpy(weighted.T @ mixed)])
                coefficients[:, some] = torch.cholesky_solve(right, factor).numpy()
                model = terms @ coefficients[:, some]
        enough = bins >= min(FEWEST, 0.5 * bins.max())
        self._enough = enough
        halves = (torch.from_numpy(np.where(enough, x, 0.0)) for x in np.split(coefficients, 2, axis=1))
        self._lines, self._level = (_components(x, factor, shape.components) for x in halves)

    def places(self, spectra: Patches) -> np.ndarray:
        """(t, P) fractional bins of pixels."""
        return ((log_wavelengths(spectra) - self.first) / self.step).clip(0, self.bins - 1)

    def scatter2(self, labels: Mapping[int, np.ndarray], spectra: Mapping[int, Patches], ranks: Ranks) -> np.ndarray:
        """(B,) variance of lines about the mean that their errors don't explain; inf where there were too few pixels."""
        total, weights = np.zeros((2, self.bins), np.float32)
        for n, s in spectra.items():
            good = np.isfinite(s.sigma)
            at = np.rint(self.places(s)[good]).astype(int)
            variance = (s.sigma[good] / np.maximum(np.abs(level_of(s)[good]), 0.1)) ** 2
            excess = (s.values[..., 2][good] - self.lines(labels[n])[at]) ** 2 - variance
            weight = 1 / (variance + FLOOR**2) ** 2
            total += np.bincount(at, weight * excess.clip(-9 * variance, 9 * (variance + FLOOR**2)), minlength=self.bins)
            weights += np.bincount(at, weight, minlength=self.bins)
        total, weights = (x.numpy() for x in ranks.sum_tensors([torch.from_numpy(x) for x in (total, weights)]))
        return np.where(self._enough, np.maximum(total / np.maximum(weights, 1e-12), LEAST**2), np.inf)

    def lines(self, labels: np.ndarray) -> np.ndarray:
        """(…, B) for labels (…, K); 0 where there were too few pixels to learn from."""
        terms, spectra = self._lines
        return (self._terms(labels) @ terms).astype(np.float32) @ spectra

    def level(self, labels: np.ndarray) -> np.ndarray:
        """(…, B) for labels (…, K), in units of the spectrum's median; 1 where there were too few pixels to learn from."""
        terms, spectra = self._level
        return np.where(self._enough, (self._terms(labels) @ terms).astype(np.float32) @ spectra, np.float32(1))


def basis(labels: torch.Tensor, centres: torch.Tensor, width: float) -> torch.Tensor:
    """(…, F): 1, the labels (…, K), and the basis functions about the centres (F − 1 − K, K), √K·width wide."""
    distance2 = ((labels[..., None, :] - centres) ** 2).sum(-1)
    bumps = torch.exp(-0.5 * distance2 / (width**2 * labels.shape[-1]))
    return torch.cat([torch.ones_like(labels[..., :1]), labels.clamp(-FARTHEST, FARTHEST), bumps], dim=-1)


def slopes(labels: torch.Tensor, centres: torch.Tensor, width: float) -> torch.Tensor:
    """(n, K, F): how `basis` changes with each of the labels (n, K)."""
    n, k = labels.shape
    scale = width**2 * k
    away = labels[:, None] - centres
    bumps = torch.exp(-0.5 * (away**2).sum(-1) / scale)
    ones = torch.eye(k, dtype=labels.dtype, device=labels.device).expand(n, k, k)
    return torch.cat([torch.zeros_like(ones[..., :1]), ones, -(away / scale * bumps[..., None]).mT], dim=-1)


def _components(coefficients: torch.Tensor, factor: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(F, c) and (c, B), whose product is coefficients (F, B) but for what varies least among the training objects, whose
    terms have the covariance factor·factorᵀ (F, F)."""
    varied = factor.T @ coefficients
    _, vectors = torch.linalg.eigh(varied @ varied.T)
    most = vectors[:, -count:]
    terms, spectra = torch.linalg.solve_triangular(factor.T, most, upper=True), most.T @ varied
    return terms.numpy(), spectra.float().numpy()


def level_of(spectra: Patches) -> np.ndarray:
    """(t, P) local level of the flux, from the flux and its ratio to the level; the flux itself where that tells nothing."""
    over = 1 + spectra.values[..., 2]
    return spectra.values[..., 0] / np.where(np.abs(over) > 0.1, over, np.float32(1))


def there(spectra: Patches) -> np.ndarray:
    """(t, P): pixels of a patch, good or bad; the first and the last of an arm may have fewer than they have room for."""
    used = np.isfinite(spectra.sigma) | (spectra.values[..., 0] != 0)
    return np.maximum.accumulate(used, 1) & np.flip(np.maximum.accumulate(np.flip(used, 1), 1), 1)


def log_wavelengths(spectra: Patches) -> np.ndarray:
    """(t, P) ln of Å."""
    return np.log(wavelengths(spectra))


def wavelengths(spectra: Patches) -> np.ndarray:
    """(t, P) Å, from the patches' mean wavelengths and steps."""
    middle, step = spectra.coordinates.astype(np.float64).T
    patch = spectra.sigma.shape[1]
    return middle[:, None] + step[:, None] * (np.arange(patch) - (patch - 1) / 2)
