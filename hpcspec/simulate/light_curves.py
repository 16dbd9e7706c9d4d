"""Light curves of variable stars: shapes, sampling and noise.

A shape is a function of (rng, time (n,) in days, period) that gives magnitudes (n,) about zero, larger is fainter, with a
peak-to-peak amplitude of about 1; rng decides what is particular to the star. All bands of a star are made in one call.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Shape = Callable[[np.random.Generator, np.ndarray, float], np.ndarray]
ORDERS = np.arange(1, 7)
FINE = np.linspace(0, 1, 200)
NIGHT, YEAR, SEASON = 0.35, 365.25, 210.0  # days


def pulsation(ratio: float, blazhko: float = 0.0, second: float = 0.0, wander: float = 0.0) -> Shape:
    """A Fourier series of six terms, each `ratio` times the last, phased to rise faster than it falls. blazhko: share of the
    amplitude that is modulated in tens of days; second: amplitude of a second mode of 0.77 periods; wander: scatter of the
    amplitude from cycle to cycle."""

    def shape(rng: np.random.Generator, time: np.ndarray, period: float) -> np.ndarray:
        amplitude = (ratio * rng.lognormal(0, 0.12)) ** (ORDERS - 1) * rng.normal(1, 0.08, len(ORDERS))
        offset = (ORDERS - 1) * (0.5 * np.pi + rng.normal(0, 0.12))

        def series(phase: np.ndarray) -> np.ndarray:
            return amplitude @ np.cos(2 * np.pi * ORDERS[:, None] * phase + offset[:, None])

        beat = 2 * np.pi * (time / rng.uniform(20, 80) + rng.random())
        phase = time / period + rng.random() + 0.15 * blazhko * np.sin(beat)
        cycles = rng.normal(1, wander, 64)[np.floor(phase).astype(int) % 64] if wander else 1.0
        value = series(phase) / np.ptp(series(FINE)) * (1 + blazhko * np.cos(beat)) * cycles
        return value + second * np.cos(2 * np.pi * (time / (0.77 * period) + rng.random()))

    return shape


def eclipses(width: tuple[float, float], ratio: tuple[float, float], ellipsoidal: tuple[float, float],
             eccentric: bool = False) -> Shape:  # fmt: skip
    """Two eclipses an orbit (profile of Mikulášek 2015, A&A 584, A8) on the wave of two tidally distorted stars. Ranges of the
    eclipses' width in orbits, of the second's depth over the first's, and of the wave's share of the amplitude."""

    def shape(rng: np.random.Generator, time: np.ndarray, period: float) -> np.ndarray:
        phase = time / period + rng.random()
        size, second, wave = (rng.uniform(*r) for r in (width, ratio, ellipsoidal))
        centre, other = (0.5 + rng.choice([-1, 1]) * rng.uniform(0.06, 0.25), rng.uniform(0.6, 1.6)) if eccentric else (0.5, 1.0)
        value = -0.5 * wave * np.cos(4 * np.pi * phase)
        for depth, at, broad in ((1 - wave, 0.0, size), ((1 - wave) * second, centre, size * other)):
            x = (phase - at + 0.5) % 1 - 0.5
            value = value + depth * (1 - (1 - np.exp(1 - np.cosh(np.clip(x / (0.5 * broad), -20, 20)))) ** 1.4)
        return value

    return shape


def semiregular(spread: float, terms: int) -> Shape:
    """Several waves whose periods scatter by `spread` (dex) about the period; many are an irregular star."""

    def shape(rng: np.random.Generator, time: np.ndarray, period: float) -> np.ndarray:
        periods = period * 10 ** rng.normal(0, spread, terms)
        amplitude = rng.lognormal(0, 0.4, terms)
        waves = amplitude @ np.cos(2 * np.pi * (time / periods[:, None] + rng.random((terms, 1))))
        return 0.5 * waves / np.sqrt((amplitude**2).sum())

    return shape


def rotation(rng: np.random.Generator, time: np.ndarray, period: float) -> np.ndarray:
    """Two groups of spots that grow and shrink over years."""
    phase = time / period + rng.random()
    life = 1 + 0.4 * np.cos(2 * np.pi * (time / rng.uniform(300, 1500) + rng.random()))
    second = rng.uniform(0.05, 0.5) * np.cos(4 * np.pi * phase + rng.uniform(0, 2 * np.pi))
    return 0.5 * life * (np.cos(2 * np.pi * phase) + second)


def outbursts(rng: np.random.Generator, time: np.ndarray, period: float) -> np.ndarray:
    """A dwarf nova: quick rises and slow declines, once a period with much scatter, and flickering."""
    starts = time.min() - period + np.cumsum(period * rng.uniform(0.5, 1.5, int(np.ptp(time) / period) * 2 + 8))
    since = time[:, None] - starts
    burst = np.exp(-np.clip(since, 0, None) / (0.15 * period)) * (since > 0)
    return 0.5 - burst.max(1) + rng.normal(0, 0.06, len(time))


def fades(rng: np.random.Generator, time: np.ndarray, period: float) -> np.ndarray:
    """A star of the R Coronae Borealis kind: sudden fades with slow recoveries at no fixed time."""
    starts = rng.uniform(time.min() - 100, time.max(), 4)
    since = time[:, None] - starts
    fade = (1 - np.exp(-np.clip(since, 0, None) / 8)) * np.exp(-np.clip(since, 0, None) / rng.uniform(80, 250, 4))
    return (fade * rng.uniform(0.4, 1.0, 4)).sum(1) + 0.03 * np.cos(2 * np.pi * time / period)


def epochs(rng: np.random.Generator, count: int, start: float, years: int) -> np.ndarray:
    """`count` times (days, rising) in the nights of seasons of SEASON days, one a year, from `start` on."""
    year, day = rng.integers(0, years, count), np.floor(rng.uniform(0, SEASON, count))
    return np.sort(start + YEAR * year + day + rng.uniform(-0.5, 0.5, count) * NIGHT)


def noise(rng: np.random.Generator, mag: np.ndarray) -> np.ndarray:
    """Errors (n,) of magnitudes (n,) in a small telescope: 1 % at the bright end, 0.1 mag at 16."""
    return np.hypot(0.01, 0.022 * 10 ** (0.33 * (mag - 14))) * rng.lognormal(0, 0.15, len(mag))
