"""Errors that mean what they say: scaled on objects that the head was not trained on."""

from __future__ import annotations

import numpy as np

# Errors, the share of the residuals that should lie within them, and how far from it the share may be.
WITHIN = ((1.0, 0.6827, 0.03), (1.96, 0.95, 0.02))
ENOUGH, FEW = 5, 60  # objects for a scale, and below which the power stays 1
POWERS = (1.0, 0.75, 1.25, 0.5, 1.5, 0.25, 2.0, 2.5, 3.0)
HEAVY = 3  # degrees of freedom of the distribution by which powers are judged
SCALES = np.geomspace(0.8, 1.5, 64)  # in units of that by which 68 % lie within one error


def calibrated(residual: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """(scale, power): with errors scale·error^power the shares of the residuals (n,) within one and within 1.96 are, the worse
    of both by what is allowed, nearest to 68.27 and 95 %. The power is the most likely one under Student's t: errors of a
    network that knows its training objects too well are too unlike each other, those of one that was stopped early too much
    alike. Where tails are heavy the scale is a little larger than 68 % alone would have it."""
    if len(residual) < ENOUGH:
        return 1.0, 1.0
    powers = POWERS if len(residual) >= FEW else POWERS[:1]
    power = powers[int(np.argmax([_likelihood(residual, error**p) for p in powers]))]
    z = np.abs(residual) / error**power
    scales = max(float(np.quantile(z, WITHIN[0][1])), 1e-12) * (SCALES if len(residual) >= FEW else np.ones(1))
    off = np.max([np.abs((z <= n * scales[:, None]).mean(1) - share) / far for n, share, far in WITHIN], axis=0)
    best = np.flatnonzero(off == off.min())
    return float(scales[best[len(best) // 2]]), power


def _likelihood(residual: np.ndarray, error: np.ndarray) -> float:
    """ln L with errors in these proportions, at the best of all scales."""
    from scipy.stats import t as student  # a slow import, which only adaptation needs

    scales = max(float(np.median(np.abs(residual) / error)), 1e-12) * np.geomspace(0.4, 4, 47)
    return float(student.logpdf(residual, HEAVY, scale=scales[:, None] * error).sum(1).max())
