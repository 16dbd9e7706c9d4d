"""Errors that mean what they say: scaled on objects that the head was not trained on."""

from __future__ import annotations

import numpy as np

WITHIN = ((1.0, 0.6827), (1.96, 0.95))  # errors, and the share of the residuals that should lie within them
ENOUGH, FEW = 5, 60  # objects for a scale, and below which a floor is not looked for
FLOORS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # in units of the median error
SCALES = np.geomspace(0.8, 1.5, 64)  # in units of that by which 68 % lie within one error


def calibrated(residual: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """(scale, floor): with errors scale·√(error² + floor²) the shares of the residuals (n,) within one and within 1.96 are, the
    worse of both, nearest to 68.27 and 95 %. A floor is for a network that knows its training objects too well: its errors are
    too unlike each other. Where tails are heavy the scale is a little larger than 68 % alone would have it."""
    if len(residual) < ENOUGH:
        return 1.0, 0.0
    tried = []
    for floor in FLOORS if len(residual) >= FEW else FLOORS[:1]:
        floor *= float(np.median(error))
        z = np.abs(residual) / np.hypot(error, floor)
        scales = max(float(np.quantile(z, WITHIN[0][1])), 1e-12) * (SCALES if len(residual) >= FEW else np.ones(1))
        off = np.max([np.abs((z <= n * scales[:, None]).mean(1) - share) for n, share in WITHIN], axis=0)
        best = np.flatnonzero(off == off.min())
        tried.append((float(off.min()), float(scales[best[len(best) // 2]]), floor))
    _, scale, floor = min(tried)
    return scale, floor
