"""Errors that mean what they say: scaled on objects that the head was not trained on."""

from __future__ import annotations

import numpy as np

WITHIN_ONE_SIGMA, WITHIN_TWO_SIGMA = 0.6827, 0.9545
ENOUGH, FEW = 5, 60  # objects for a scale, and below which a floor is not looked for
FLOORS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # in units of the median error


def calibrated(residual: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """(scale, floor): of residuals (n,) 68 % lie within scale·√(error² + floor²), and of those with the floors tried twice that
    holds nearest to 95 %. A network that knows its training objects too well has errors that are too unlike each other."""
    if len(residual) < ENOUGH:
        return 1.0, 0.0
    tried = []
    for floor in FLOORS if len(residual) >= FEW else FLOORS[:1]:
        floor *= float(np.median(error))
        z = np.abs(residual) / np.hypot(error, floor)
        one, two = np.quantile(z, (WITHIN_ONE_SIGMA, WITHIN_TWO_SIGMA))
        tried.append((abs(np.log(max(two, 1e-9) / max(2 * one, 1e-9))), float(one), floor))
    _, scale, floor = min(tried)
    return scale, floor
