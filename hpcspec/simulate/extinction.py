"""Interstellar extinction: the curve of Cardelli, Clayton & Mathis (1989), ApJ 345, 245, equations 1 to 3b."""

from __future__ import annotations

import numpy as np

R_V = 3.1
RANGE = (3030.0, 33000.0)  # Å
_A = (0.32999, -0.77530, 0.01979, 0.72085, -0.02427, -0.50447, 0.17699, 1.0)
_B = (-2.09002, 5.30260, -0.62251, -5.38434, 1.07233, 2.28305, 1.41338, 0.0)


def ccm89(wavelength: np.ndarray, r_v: float = R_V) -> np.ndarray:
    """A(λ)/A(V) (n,) at wavelengths (n,) in Å, optical and infrared.

    Raises ValueError outside RANGE.
    """
    wavelength = np.asarray(wavelength, np.float64)
    if wavelength.size and not (RANGE[0] <= wavelength.min() and wavelength.max() <= RANGE[1]):
        raise ValueError(f"the extinction curve holds from {RANGE[0]:.0f} to {RANGE[1]:.0f} Å")
    x = 1e4 / wavelength
    y = x - 1.82
    infrared = x**1.61
    return np.where(x < 1.1, (0.574 - 0.527 / r_v) * infrared, np.polyval(_A, y) + np.polyval(_B, y) / r_v)


def transmission(wavelength: np.ndarray, ebv: float) -> np.ndarray:
    """The share of light (n,) that E(B-V) magnitudes let through at wavelengths (n,) in Å."""
    return 10 ** (-0.4 * R_V * ebv * ccm89(wavelength))
