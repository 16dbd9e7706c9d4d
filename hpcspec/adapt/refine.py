"""A head's answer refined by a fit: the labels whose mean spectrum is most like the observed one, found from the head's by
Gauss-Newton. The two see a spectrum differently, so that both together, by their errors, know it better than each alone.

N objects, K labels, F terms, C components of the mean spectra, B bins of ln λ.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcspec.adapt.calibration import calibrated
from hpcspec.adapt.mean_spectra import MeanSpectra, Shape, basis, level_of, log_wavelengths, slopes
from hpcspec.stream.batch import Batch, Patches
from hpcspec.training.ranks import Ranks

log = logging.getLogger(__name__)
ROUNDS, STEPS, LONGEST = 2, 8, 0.3  # of Gauss-Newton, and how far a step may go, in units of the labels' spread
BEYOND = 0.2  # of their range, that labels may go
CLIP = 5.0  # residuals further out, in their errors, count as this
WEAK = 1e-3  # of a prior about the head's answer, that keeps what a spectrum doesn't tell where it is
VELOCITY = 30 / 299792.458  # that is left in a spectrum at rest, in ln λ
AT_ONCE = 16  # objects
LOG_VARIANCE = (-12.0, 12.0)
TRIED = ((1.0, 1e-2, 64), (1.0, 1e-3, 64), (1.0, 1e-4, 32), (1.0, 1e-5, 24), (1.0, 1e-6, 24), (1.0, 1e-7, 20), (0.7, 1e-4, 24),
         (0.7, 1e-6, 20))  # fmt: skip
MEDIAN = 1.17  # standard error of the logarithm of a median of absolute normal deviates, times √n
SHAPES = tuple(Shape(*x) for x in TRIED)
EVERY, TRIED_ON, ASIDE, ROUGH = 5, 400, 0.2, 2e-3  # objects kept aside and tried on, from how far, and their scatter until known


def learned(labels: Mapping[int, np.ndarray], spectra: Mapping[int, Patches], ranks: Ranks) -> MeanSpectra:
    """Mean spectra of the stiffest shape by which labels of objects kept aside are found as well as by any, as far as so few
    can tell (the rule of one standard error, Breiman et al. 1984).

    labels: (K,) of the objects of all ranks, by number; spectra: of this rank's.
    """
    aside = set(sorted(labels)[::EVERY])
    others = {n: x for n, x in labels.items() if n not in aside}
    theirs = {n: s for n, s in spectra.items() if n not in aside}
    tried = dict(list((n, s) for n, s in spectra.items() if n in aside)[: TRIED_ON // ranks.size])
    every, found = np.stack(list(labels.values())), []
    truth = torch.from_numpy(np.stack([labels[n] for n in tried]) if tried else every[:0])
    start = truth + ASIDE * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=truth.dtype)
    for shape in SHAPES:
        mean = MeanSpectra(others, theirs, ranks, shape, rough=True)
        fit = Refine.of(mean, list(range(every.shape[1])), every, np.full(mean.bins, ROUGH**2))
        off = (fit.labels(list(tried.values()), start) - truth).abs().numpy()
        misses = np.concatenate(ranks.gather(off))
        found.append(float(np.log(np.maximum(np.median(misses, axis=0), 1e-9)).sum()))
    unsure = MEDIAN * (every.shape[1] / max(len(misses), 1)) ** 0.5
    best = next(shape for shape, score in zip(SHAPES, found, strict=True) if score <= min(found) + unsure)
    log.info("adapt: mean spectra of %d objects: %s", len(labels), best)
    return MeanSpectra(labels, spectra, ranks, best)


class Refine(nn.Module):
    """The fit of mean spectra as part of a released model; `shape` is what it takes to build it before its weights are loaded."""

    centres: torch.Tensor
    terms: torch.Tensor
    lines: torch.Tensor
    scatter: torch.Tensor
    limits: torch.Tensor

    def __init__(self, shape: Mapping[str, Any]):
        super().__init__()
        self.shape = dict(shape)
        self.columns: list[int] = list(shape["columns"])
        labels, bins, components = len(self.columns), shape["bins"], shape["components"]
        self.register_buffer("centres", torch.zeros(shape["centres"], labels))
        self.register_buffer("terms", torch.zeros(1 + labels + shape["centres"], components))
        self.register_buffer("lines", torch.zeros(components, bins))
        self.register_buffer("scatter", torch.zeros(bins))
        self.register_buffer("limits", torch.zeros(2, labels))

    @staticmethod
    def of(mean: MeanSpectra, columns: list[int], labels: np.ndarray, scatter2: np.ndarray) -> Refine:
        """columns: the labels' places among the task's parameters; labels: (n, K) of the training objects; scatter2: (B,) the
        variance of lines about the mean, which noise doesn't explain, inf where nothing is known."""
        terms, lines = mean.components
        shape = {"columns": columns, "first": mean.first, "step": mean.step, "bins": mean.bins, "centres": len(mean.centres),
                 "components": terms.shape[1], "width": mean.width}  # fmt: skip
        made = Refine(shape)
        low, high = labels.min(0), labels.max(0)
        limits = np.stack([low - BEYOND * (high - low), high + BEYOND * (high - low)])
        arrays = {"centres": mean.centres, "terms": terms, "lines": lines, "scatter": scatter2, "limits": limits}
        for name, array in arrays.items():
            getattr(made, name).copy_(torch.from_numpy(np.asarray(array, np.float32)))
        return made

    def observed(self, spectra: Patches, owner: np.ndarray, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Lines and their inverse variances in the bins (N, B), of patches whose objects are `owner` (t,)."""
        lines, weight = np.zeros((2, count * self.shape["bins"]), np.float32)
        good = np.isfinite(spectra.sigma)
        place = (log_wavelengths(spectra) - self.shape["first"]) / self.shape["step"]
        good &= (place > -0.5) & (place < self.shape["bins"] - 0.5)
        at = (np.rint(place).astype(np.int64) + owner[:, None] * self.shape["bins"])[good]
        ivar = (np.maximum(np.abs(level_of(spectra)[good]), 0.1) / spectra.sigma[good]) ** 2
        weight[:] = np.bincount(at, ivar, minlength=len(weight))
        lines[:] = np.bincount(at, ivar * spectra.values[..., 2][good], minlength=len(weight)) / np.maximum(weight, 1e-12)
        a, b = (torch.from_numpy(x.reshape(count, -1)).to(self.lines.device) for x in (lines, weight))
        return a, b

    def forward(self, batch: Batch, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardised parameters (N, P) and the logarithms of their variances; those of `start` (N, P) and the largest there is
        where the fit tells nothing."""
        mean, log_variance = start.clone(), torch.full_like(start, LOG_VARIANCE[1])
        owner = batch.owners[1].cpu().numpy()
        spectra = Patches(*(x.cpu().numpy() for x in batch.spectra))
        for first in range(0, len(batch), AT_ONCE):
            count, mine = min(AT_ONCE, len(batch) - first), (owner >= first) & (owner < first + AT_ONCE)
            lines, weight = self.observed(Patches(*(x[mine] for x in spectra)), owner[mine] - first, count)
            rows = slice(first, first + count)
            found, variance = self._fit(lines, weight, start[rows, self.columns].float())
            good = torch.isfinite(found).all(1, keepdim=True) & torch.isfinite(variance) & (variance > 0)
            mean[rows, self.columns] = torch.where(good, found, mean[rows, self.columns])
            known = variance.clamp(min=1e-12).log().clamp(*LOG_VARIANCE)
            log_variance[rows, self.columns] = torch.where(good, known, log_variance[rows, self.columns])
        return mean, log_variance

    def labels(self, spectra: Sequence[Patches], start: torch.Tensor) -> torch.Tensor:
        """(N, K) of N spectra, from `start` (N, K)."""
        out = [start[:0]]
        for first in range(0, len(spectra), AT_ONCE):
            part = spectra[first : first + AT_ONCE]
            both = Patches(*(np.concatenate(x) for x in zip(*part, strict=True)))
            owner = np.repeat(np.arange(len(part)), [len(s.sigma) for s in part])
            out.append(self._fit(*self.observed(both, owner, len(part)), start[first : first + AT_ONCE])[0].to(start.dtype))
        return torch.cat(out)

    def _fit(self, lines: torch.Tensor, weight: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels (N, K) and their variances, from lines and inverse variances (N, B); with a small velocity that nobody asks
        for."""
        x, first = self._inside(start.double()), start.double()
        weight = torch.where(weight > 0, 1 / (1 / weight.clamp(min=1e-12) + self.scatter), 0.0)
        weight = weight * (CLIP / ((lines - self.model(x)).abs() * weight.sqrt()).clamp(min=CLIP))
        prior = WEAK * torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
        terms, spread = self.terms.double(), VELOCITY / self.shape["step"]
        weighted = self.lines * weight[:, None]  # in the space of the components a step costs next to nothing
        left, right = (weighted @ self.lines.T).double(), (weighted @ lines[..., None])[..., 0].double()
        for _ in range(ROUNDS):
            moved = torch.gradient(self.model(x), dim=1)[0]  # by one bin
            both = (weighted @ moved[..., None])[..., 0].double()
            own, seen = ((weight * moved * y).sum(1).double() for y in (moved, lines))
            share = both / (own + spread**-2)[:, None]
            a, b = left - share[..., None] * both[:, None], right - share * seen[:, None]  # whatever the velocity is
            for _ in range(STEPS):
                slope = self._slopes(x) @ terms  # (N, K, C)
                misses = b - (a @ (self._basis(x) @ terms)[..., None])[..., 0]
                curvature = slope @ a @ slope.mT + prior
                step = torch.linalg.solve(curvature, (slope @ misses[..., None])[..., 0] + WEAK * (first - x))
                x = self._inside(x + step.clamp(-LONGEST, LONGEST))
        velocity = (seen - (both * (self._basis(x) @ terms)).sum(1)) / (own + spread**-2)
        off = lines - self.model(x) - velocity[:, None].float() * moved
        chi2 = (weight * off**2).sum(1) / (weight > 0).sum(1).clamp(min=1)
        variance = torch.linalg.inv(curvature).diagonal(dim1=1, dim2=2)
        told = variance < 0.5 / WEAK  # by the spectrum, not by the prior
        return x.float(), torch.where(told, variance * chi2.clamp(min=1)[:, None], torch.inf).float()

    def model(self, labels: torch.Tensor) -> torch.Tensor:
        """Lines (N, B) of labels (N, K)."""
        return (self._basis(labels) @ self.terms.double()).float() @ self.lines

    def _inside(self, labels: torch.Tensor) -> torch.Tensor:
        return torch.minimum(torch.maximum(labels, self.limits[0]), self.limits[1])

    def _basis(self, labels: torch.Tensor) -> torch.Tensor:
        return basis(labels, self.centres.double(), self.shape["width"])

    def _slopes(self, labels: torch.Tensor) -> torch.Tensor:
        return slopes(labels, self.centres.double(), self.shape["width"])


def combined(mean: np.ndarray, log_variance: np.ndarray, fitted: np.ndarray, fitted_log_variance: np.ndarray,
             scales: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mean and log variance (n, P) of a head's and a fit's answers, by their errors, each as calibrated (`scales_of`)."""
    weights = [1 / (np.array(scales[key]["scale"]) ** 2 * np.exp(of * np.array(scales[key]["power"])))
               for key, of in (("head", log_variance), ("fit", fitted_log_variance))]  # fmt: skip
    weights[1] = np.where(fitted_log_variance < LOG_VARIANCE[1], weights[1], 0.0)
    total = weights[0] + weights[1]
    return (weights[0] * mean + weights[1] * fitted) / total, -np.log(total)


def scales_of(residuals: Mapping[str, np.ndarray], log_variances: Mapping[str, np.ndarray]) -> dict[str, dict[str, list[float]]]:
    """Scales and powers of the errors of "head" and "fit" for each parameter, from residuals (n, P), NaN where unknown."""
    out: dict[str, dict[str, list[float]]] = {}
    for key, residual in residuals.items():
        error = np.exp(0.5 * log_variances[key])
        known = np.isfinite(residual) & (log_variances[key] < LOG_VARIANCE[1])
        pairs = [calibrated(r[k], e[k]) for r, e, k in zip(residual.T, error.T, known.T, strict=True)]
        out[key] = {"scale": [one.scale for one in pairs], "power": [one.power for one in pairs]}
    return out
