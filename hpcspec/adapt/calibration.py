"""Errors that mean what they say: scaled on objects that the head was not trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ONE, WIDE = 0.6827, 0.95  # shares of the true values within one error, and within the wider interval
NORMAL = 1.96  # errors that hold WIDE where residuals are normal
ENOUGH, FEW = 5, 60  # objects for a scale, and below which power and tail stay as they are
POWERS = (1.0, 0.75, 1.25, 0.5, 1.5, 0.25, 2.0, 2.5, 3.0)
HEAVY = 3  # degrees of freedom of the distribution by which powers are judged
LEAST = 1e-12


class Calibration(NamedTuple):
    """An error becomes scale·error^power, within which 68.27 % of the true values lie, and tail of these hold 95 %."""

    scale: float = 1.0
    power: float = 1.0
    tail: float = NORMAL


def calibrated(residual: np.ndarray, error: np.ndarray) -> Calibration:
    """What makes errors (n,) cover the residuals (n,). The power is the most likely one under Student's t: errors of a network
    that knows its training objects too well are too unlike each other, those of one that was stopped early too much alike.
    Residuals of real labels have heavier tails than a normal distribution: one scale can't serve both intervals."""
    if len(residual) < ENOUGH:
        return Calibration()
    enough = len(residual) >= FEW
    powers = POWERS if enough else POWERS[:1]
    power = powers[int(np.argmax([_likelihood(residual, error**p) for p in powers]))]
    # The k-th of n residuals holds k/(n+1) of other objects'.
    one, wide = np.quantile(np.abs(residual) / error**power, (ONE, WIDE), method="weibull")
    scale = max(float(one), LEAST)
    return Calibration(scale, power, max(float(wide) / scale, 1.0) if enough else NORMAL)


def _likelihood(residual: np.ndarray, error: np.ndarray) -> float:
    """ln L with errors in these proportions, at the best of all scales."""
    from scipy.stats import t as student  # a slow import, which only adaptation needs

    scales = max(float(np.median(np.abs(residual) / error)), LEAST) * np.geomspace(0.4, 4, 47)
    return float(student.logpdf(residual, HEAVY, scale=scales[:, None] * error).sum(1).max())
