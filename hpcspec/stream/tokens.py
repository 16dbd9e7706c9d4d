"""Pixels to tokens: contiguous native pixels, nothing resampled, nothing removed.

Each pixel has three values: the flux over the spectrum's median, log10 of its error over the same, and the flux over its
local level (a running mean of the good pixels), which shows lines whatever the continuum. The median goes in as a scalar.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter1d

from hpcspec.shards.format import Pixels

CHANNELS = 3
SCALARS = ("log10_flux_scale", "log10_sn")
LOCAL_WIDTH = 121  # three running means of 121 pixels are nearly a Gaussian of σ = 60 pixels
LIMIT, LOCAL_LIMIT, LOG_ERROR = 20.0, 5.0, (-4.0, 2.0)
FLOOR = 1e-30
SIGMA = (1e-12, 1e30)  # what an error over the scale is held within, for float32's sake


@dataclass(frozen=True)
class Tokens:
    """One object's patches: values (t, p, 3) f4, sigma (t, p) f4 of values[..., 0] (inf where bad), coordinates (t, 2) f8
    (mean wavelength and step per pixel, Å), scalars (2,) f4 in the order of `SCALARS`, scale: flux = scale · values[..., 0]."""

    values: np.ndarray
    sigma: np.ndarray
    coordinates: np.ndarray
    scalars: np.ndarray
    scale: float


def local_level(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Running mean (n,) of the good pixels of flux (n,), Gaussian-like with σ of 60 pixels; 0 where there are none."""
    total, count = np.where(good, flux, 0.0).astype(np.float64), good.astype(np.float64)
    for _ in range(3):
        total, count = uniform_filter1d(total, LOCAL_WIDTH, mode="nearest"), uniform_filter1d(count, LOCAL_WIDTH, mode="nearest")
    return np.where(count > 1e-9, total / np.maximum(count, 1e-9), 0.0)


def flux_scale(pixels: Pixels) -> float:
    """Median of the absolute flux over all good pixels, at least the median error over ten."""
    flux = np.concatenate([f[i > 0] for _, f, i in pixels.arms]).astype(np.float64)
    ivar = np.concatenate([i[i > 0] for _, _, i in pixels.arms]).astype(np.float64)
    if not len(flux):
        return 1.0
    return float(max(np.median(np.abs(flux)), 0.1 / np.sqrt(np.median(ivar)), FLOOR))


def tokenize(pixels: Pixels, patch: int) -> Tokens:
    """The tokens of one object; a patch with fewer than a quarter of its pixels good is absent, unless all are."""
    scale = flux_scale(pixels)
    values, sigma, coordinates, counts, sn = [], [], [], [], []
    for wavelength, flux, ivar in pixels.arms:
        n = len(flux)
        if not n:
            continue
        good = ivar > 0
        f = flux.astype(np.float64) / scale
        s = np.where(good, np.clip(1 / np.sqrt(np.where(good, ivar, 1.0).astype(np.float64)) / scale, *SIGMA), np.inf)
        level = local_level(np.clip(f, -LIMIT, LIMIT), good)  # a running sum would carry a spike's rounding errors on
        local = np.where(good, f - level, 0.0) / np.maximum(np.abs(level), 0.1)
        v = np.stack([np.where(good, np.clip(f, -LIMIT, LIMIT), np.clip(level, -LIMIT, LIMIT)),
                      np.where(good, np.clip(np.log10(s), *LOG_ERROR), LOG_ERROR[1]),
                      np.clip(local, -LOCAL_LIMIT, LOCAL_LIMIT)], axis=1)  # fmt: skip
        t = -(-n // patch)
        pad = t * patch - n
        v = np.concatenate([v, np.tile([0.0, LOG_ERROR[1], 0.0], (pad, 1))])
        s = np.concatenate([s, np.full(pad, np.inf)])
        first = np.arange(t) * patch
        last = np.minimum(first + patch, n) - 1
        step = np.gradient(wavelength)[(first + last) // 2] if n > 1 else np.ones(1)
        values.append(v.reshape(t, patch, CHANNELS).astype(np.float32))
        sigma.append(s.reshape(t, patch).astype(np.float32))
        coordinates.append(np.stack([(wavelength[first] + wavelength[last]) / 2, step], axis=1))
        counts.append(np.isfinite(sigma[-1]).sum(1))
        sn.append(np.abs(f[good]) / s[:n][good])
    good_pixels = np.concatenate(counts)
    keep = good_pixels >= patch / 4
    if not keep.any():
        keep = good_pixels > 0
    median_sn = float(np.median(np.concatenate(sn))) if good_pixels.any() else 0.0
    scalars = np.array([np.log10(scale), np.log10(max(median_sn, 1e-3))], np.float32)
    return Tokens(np.concatenate(values)[keep], np.concatenate(sigma)[keep], np.concatenate(coordinates)[keep], scalars, scale)
