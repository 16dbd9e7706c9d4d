"""The period of a light curve in several bands: one frequency, with a Fourier series of its own in every band.

Candidates are the peaks of the generalised Lomb-Scargle periodogram, of which the bands' reductions of χ² are added, and of
its sums over harmonics, which find narrow eclipses; at each, and at half its frequency, series of up to `ORDER` harmonics
are fitted, and the lowest Bayesian information criterion decides between a period, its double and its aliases.
Sources: Zechmeister & Kürster (2009), A&A 496, 577; VanderPlas & Ivezić (2015), ApJ 812, 18; the sums over times by a
non-uniform Fourier transform, Greengard & Lee (2004), SIAM Review 46, 443, with a Kaiser-Bessel kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.special

ORDER = 6  # harmonics of a series
FASTEST = 24.0  # cycles a day
FREQUENCIES = 200_000  # at most: 20 cycles a day over nine years
OVERSAMPLING = 3.0  # frequencies in 1/(time span)
WIDTH, SIGMA = 8, 1.25  # of the kernel, grid points; and how much finer the grid is than what is read
SHAPE = np.pi * np.sqrt((WIDTH * (1 - 0.5 / SIGMA)) ** 2 - 0.8)
PEAKS = ((1, 16), (2, 6), (4, 6))  # harmonics summed, and how many peaks are taken
STEPS = np.linspace(-0.4, 0.4, 9)  # around a candidate, 1/(time span)
FINER = np.linspace(-0.05, 0.05, 5)
RIDGE = 1e-3  # a weak prior that harmonics are small, for gaps in phase
FITTED = 1000  # epochs of a band at most where series are fitted
FEWEST = 8  # epochs for a period
EDGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.9, 1.1, 2.0, 4.0, 8.0, 20.0, 60.0, 200.0, 600.0)  # days


@dataclass(frozen=True)
class Band:
    """Epochs of one band, n: time (n,), days from a zero point that the bands share; value (n,), their weighted mean
    subtracted; weight (n,), of sum 1; noise, the median error."""

    time: np.ndarray
    value: np.ndarray
    weight: np.ndarray
    noise: float


@dataclass(frozen=True)
class Periodic:
    """What fits best: frequency (1/days) and its standard error; order, harmonics that are significant; reduced (ORDER,),
    the fraction of all χ² that series of 1 … ORDER harmonics take away; series (bands, ORDER) complex, amplitudes and phases
    of cos(2πk·frequency·time - phase); second, the best frequency that is another one, and how much worse its criterion is
    per epoch, both NaN where there is none; profile (k,), the highest power of a sine in each interval of `EDGES`, in
    units of the highest of all, NaN where the search doesn't reach."""

    frequency: float
    error: float
    order: int
    reduced: np.ndarray
    series: np.ndarray
    second: tuple[float, float]
    profile: np.ndarray


def find_period(bands: Sequence[Band], span: float) -> Periodic | None:
    """The period of epochs within `span` days; None where there are too few or nothing varies.

    It is searched for in all bands at once, each in units of its intrinsic scatter.
    """
    bands = [b for b in bands if len(b.time) >= FEWEST and _power(b) > 0]
    if not bands or span <= 0:
        return None
    bands = [_fewer(b) for b in bands]
    together = _together(bands)
    frequencies, power = periodogram(together, span)
    found = _candidates(frequencies, power)
    if not len(found):
        return None
    slow, few = 0.5 / span, _fewer(together)
    trials = np.concatenate([found, found / 2])
    trials = (trials[:, None] + STEPS / span).ravel()
    trials = np.unique(trials[trials > slow])
    score, _, _ = _fits(few, trials)
    near = trials[np.argsort(score, kind="stable")[:4]]
    finer = (near[:, None] + FINER / span).ravel()
    finer = finer[finer > slow]
    fine, reduced, _ = _fits(few, finer)
    best = int(np.argmin(fine))
    frequency, taken = float(finer[best]), reduced[best]
    twice, twice_taken, _ = _fits(few, np.array([frequency / 2]), 2)
    count = len(few.time)
    if frequency / 2 > slow and twice[0] < fine[best] - np.log(count) * 2:
        frequency, taken = frequency / 2, twice_taken[0, :ORDER]
    left = max(1 - taken[-1], 1e-6)
    error = np.sqrt(6 / count * left / max(taken[-1], 1e-6)) / (np.pi * span)
    order = int(np.argmin(_criterion(taken[None], count)[0])) + 1
    multiples = np.array([1, 2, 3, 0.5, 1 / 3])
    other = np.all(np.abs(trials[:, None] - multiples * frequency) > 1.5 / span, axis=1)
    second = float("nan"), float("nan")
    if other.any():
        at = int(np.argmin(np.where(other, score, np.inf)))
        second = float(trials[at]), float(score[at] - fine[best]) / count
    series = np.stack([_fits(band, np.array([frequency]))[2][0] for band in bands])
    return Periodic(frequency, float(error), order, taken, series, second, _profile(frequencies, power))


def _together(bands: Sequence[Band]) -> Band:
    """All bands as one, each in units of its intrinsic scatter, its epochs with weights that add up to their number."""
    scales = []
    for band in bands:
        scatter = np.sqrt(_power(band))
        scales.append(np.sqrt(max(scatter**2 - band.noise**2, (0.3 * scatter) ** 2)))
    weight = np.concatenate([
        len(b.time) * b.weight * min(1.0, s**2 / _power(b)) for b, s in zip(bands, scales, strict=True)])  # fmt: skip
    value = np.concatenate([b.value / s for b, s in zip(bands, scales, strict=True)])
    noise = min(b.noise / s for b, s in zip(bands, scales, strict=True))
    return Band(np.concatenate([b.time for b in bands]), value, weight / weight.sum(), noise)


def _profile(frequencies: np.ndarray, power: np.ndarray) -> np.ndarray:
    """The highest power in each interval of periods between EDGES, in units of the highest of all."""
    bounds = np.searchsorted(frequencies, 1 / np.array(EDGES[::-1]))
    parts = [power[a:b].max() if b > a else np.nan for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    return np.array(parts[::-1]) / max(float(power.max()), 1e-12)


def periodogram(band: Band, span: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (f,), 1/days, and the fraction of χ² that a sine with a constant at each takes away (f,)."""
    step = 1 / (OVERSAMPLING * span)
    count = int(np.clip(FASTEST / step, 2, FREQUENCIES)) + 1
    y = _transform(band.time * step, band.weight * band.value, count)
    w = _transform(band.time * step, band.weight, count)
    w2 = np.zeros_like(w)  # beyond half of the frequencies, where epochs rarely repeat
    w2[: (count + 1) // 2] = w[::2]
    cc = 0.5 * (1 + w2.real) - w.real**2
    ss = 0.5 * (1 - w2.real) - w.imag**2
    cs = 0.5 * w2.imag - w.real * w.imag
    below = cc * ss - cs**2
    good = below > 1e-3
    taken = np.where(good, ss * y.real**2 + cc * y.imag**2 - 2 * cs * y.real * y.imag, 0) / np.where(good, below, 1)
    return step * np.arange(1, count), np.clip(taken[1:].astype(np.float64) / _power(band), 0, 1)


def _transform(cycles: np.ndarray, value: np.ndarray, count: int) -> np.ndarray:
    """sum_j value_j exp(2πi k cycles_j), k = 0 … count-1, complex64; cycles (n,) in [0, 1)."""
    size = scipy.fft.next_fast_len(int(2 * SIGMA * count) + 2 * WIDTH, real=True)
    place = cycles * size
    first = np.ceil(place - WIDTH / 2).astype(np.int64)
    index = first[:, None] + np.arange(WIDTH)
    inside = np.clip(1 - ((index - place[:, None]) * (2 / WIDTH)) ** 2, 0, None)
    spread = scipy.special.i0(SHAPE * np.sqrt(inside)) * value[:, None]
    grid = np.bincount((index % size).ravel(), spread.ravel(), size).astype(np.float32)
    k = np.arange(count) * (np.pi * WIDTH / size)
    root = np.sqrt(SHAPE**2 - k**2)
    kernel = (root / (WIDTH * np.sinh(root))).astype(np.float32)
    return np.conj(scipy.fft.rfft(grid)[:count]) * kernel


def _candidates(frequencies: np.ndarray, power: np.ndarray) -> np.ndarray:
    """The frequencies of the highest peaks of the power and of its sums over harmonics."""
    wide = power.copy()
    wide[1:] = np.maximum(wide[1:], power[:-1])
    wide[:-1] = np.maximum(wide[:-1], power[1:])
    found: list[int] = []
    for harmonics, number in PEAKS:
        most = len(power) // harmonics
        summed = power[:most].copy()
        for k in range(2, harmonics + 1):
            summed += wide[k - 1 : k * most : k]
        if len(summed) < 3:
            found += range(len(summed))
            continue
        peak = np.flatnonzero((summed[1:-1] >= summed[:-2]) & (summed[1:-1] > summed[2:])) + 1
        peak = np.append(peak, 0) if summed[0] > summed[1] else peak
        highest = peak[np.argsort(-summed[peak], kind="stable")[:number]]
        found += highest.tolist()
    return frequencies[np.unique(np.array(found, np.int64))]


def _fits(band: Band, frequencies: np.ndarray, turns: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Criterion (f,), lowest of all orders; fraction of χ² taken away by series of 1 … k harmonics (f, k), and the complex
    series of all (f, k), k = turns·ORDER."""
    order = turns * ORDER
    penalty = np.concatenate([[0.0], np.repeat((np.arange(1, order + 1) / turns) ** 2, 2)]) * RIDGE
    turn = np.exp(2j * np.pi * np.outer(frequencies, band.time))
    terms = np.empty((len(frequencies), 2 * order + 1, len(band.time)))
    terms[:, 0] = 1
    power = turn
    for k in range(1, order + 1):
        terms[:, 2 * k - 1], terms[:, 2 * k] = power.real, power.imag
        power = power * turn
    weighted = terms * band.weight
    normal = weighted @ terms.transpose(0, 2, 1) + np.diag(penalty + 1e-9)
    right = weighted @ band.value
    lower = np.linalg.cholesky(normal)
    z = np.linalg.solve(lower, right[..., None])
    reduced = np.clip(np.cumsum(z[..., 0] ** 2, axis=1)[:, 2::2] / _power(band), 0, 1)
    c = np.linalg.solve(lower.transpose(0, 2, 1), z)[..., 0]
    return _criterion(reduced, len(band.time)).min(1), reduced, c[:, 1::2] + 1j * c[:, 2::2]


def _criterion(reduced: np.ndarray, count: int) -> np.ndarray:
    """Bayesian information criterion of series of 1 … k harmonics, (f, k), where errors are known to a factor."""
    parameters = 2 * np.arange(1, reduced.shape[1] + 1)
    return count * np.log(np.maximum(1 - reduced, 1e-6)) + parameters * np.log(count)


def _power(band: Band) -> float:
    return float(np.sum(band.weight * band.value**2))


def _fewer(band: Band) -> Band:
    """At most FITTED epochs, drawn always in the same way."""
    if len(band.time) <= FITTED:
        return band
    which = np.sort(np.random.default_rng(0).choice(len(band.time), FITTED, replace=False))
    weight = band.weight[which] / band.weight[which].sum()
    value = band.value[which]
    return Band(band.time[which], value - np.sum(weight * value), weight, band.noise)
