"""What a light curve tells about its object: scalars that are derived from it, the same for every survey.

All are in magnitudes, whatever the curve is in: fluxes are turned into magnitudes below their median where that is above 0,
else they are in units of their own scatter and amplitudes are left out. What a curve doesn't determine is absent. `<b>` is a
band, `<a>_<b>` two bands, in the order of their names:

    lc_log_period lc_cycles           log10 of the period, days (periods.py); log10 of the periods in the time span
    lc_power lc_power_all             fraction of χ² that a sine and a series of harmonics at that period take away
    lc_significance lc_order          log10 of the gain in the Bayesian information criterion; harmonics that are significant
    lc_log_period2 lc_less2           the best period that is no multiple of the first, and how much worse it is per epoch:
                                      which one is an alias may depend on what else is known of the object
    lc_power_<p>_<q>d                 highest power of a sine of a period from p to q days, in units of the highest of all
    lc_r21 lc_r31 lc_r41              amplitudes of harmonics in units of the first's, in the band where they are seen best
    lc_cos_phi<k>1 lc_sin_phi<k>1     k = 2, 3, 4: phase φ_k - k φ_1 of cosines of magnitudes (Simon & Lee 1981, ApJ 248, 291),
                                      towards 0 where noise hides it
    lc_rise lc_width                  fractions of the period: from faintest to brightest; fainter than half way
    lc_fold_eta, …2, lc_fold_half     log10 of von Neumann's η of the curve folded at the period, at twice and at half of it
    lc_fold_cusum                     range of cumulative sums of the folded curve
    lc_rest_mad _eta _skew            of what the series leaves: median deviation in units of the curve's, log10; η, log10; skew
    lc_amplitude_<b> lc_fourier_<b>   half of the 5-95 % range; half of the peak to peak of the series
    lc_mean_<b> lc_scatter_<b>        weighted mean magnitude; standard deviation in units of the median error, log10
    lc_skew_<b> lc_kurtosis_<b>       moments
    lc_eta_<b> lc_trend_<b>           von Neumann's η, log10; slope over the time span in units of the standard deviation
    lc_mid20_<b> … lc_mid80_<b>       central 20, 35, 50, 65 and 80 % ranges in units of the central 90 %
    lc_asymmetry_<b>                  (faint - bright tail) of the 5-95 % range about the median, in units of the range
    lc_beyond_<b> lc_cusum_<b>        fraction of epochs beyond a standard deviation; range of cumulative sums
    lc_colour_<a>_<b>                 difference of the means
    lc_ratio_<a>_<b> lc_lag_<a>_<b>   log10 of the ratio of harmonics; phase of one after the other, in periods
    lc_correlation_<a>_<b> lc_slope_… of epochs less than 0.1 day apart: correlation, and log10 of the ratio of scatters
    lc_colour_skew_… lc_colour_slope_… of the same: skew of the colour, and its correlation with brightness

Sources: Debosscher et al. (2007), A&A 475, 1159; Richards et al. (2011), ApJ 733, 10; Kim & Bailer-Jones (2016), A&A 587, A18.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpcspec.shards.periods import EDGES, Band, Periodic, find_period
from hpcspec.surveys.observation import Curve, Observation

log = logging.getLogger(__name__)
Scalars = dict[str, tuple[float, float]]
VERSION = 1  # of what is derived: with another one files are ingested again

BANDS = 8  # those of most epochs
FAINTEST = 0.02  # of the median flux, below which a flux has no magnitude of its own
SOFT = 0.3  # of the scatter, added to errors: what varies isn't noise
TOGETHER = 0.1  # days
UNKNOWN = float("nan")
PERCENTILES = np.array([5, 10, 17.5, 25, 32.5, 40, 50, 60, 67.5, 75, 82.5, 90, 95])


@dataclass(frozen=True)
class _Good:
    """The good epochs of a band: time (n,), days; value and error (n,), magnitudes; whether they are calibrated magnitudes,
    and whether their amplitude means something."""

    name: str
    time: np.ndarray
    value: np.ndarray
    error: np.ndarray
    is_magnitude: bool
    has_amplitude: bool


def with_variability(one: Observation) -> Observation:
    """The observation, with what its light curves tell among its scalars; a survey's own values are not replaced."""
    if not one.curves:
        return one
    try:
        derived = variability(one.curves)
    except (ArithmeticError, ValueError, np.linalg.LinAlgError):
        log.warning("%s: its light curves tell nothing of themselves", one.object_id, exc_info=True)
        return one
    return replace(one, scalars=derived | dict(one.scalars))


def variability(curves: Sequence[Curve]) -> Scalars:
    """Derived scalars of an object's light curves, {name: (value, standard error or NaN)}; those that are undetermined are
    left out, all values are finite. The order of the curves doesn't matter."""
    with np.errstate(all="ignore"):
        bands = _bands(curves)
        out: Scalars = {}
        for band in bands:
            out.update(_moments(band))
        out.update(_periodic(bands))
        for one, two in zip(bands[:-1], bands[1:], strict=True):
            out.update(_pair(one, two))
    return {name: (float(v), float(e)) for name, (v, e) in sorted(out.items()) if np.isfinite(np.float32(v))}


def _bands(curves: Sequence[Curve]) -> list[_Good]:
    """Good epochs by band, in the order of names; curves of one band in several units aren't mixed, the longest stays."""
    found: dict[str, _Good] = {}
    for curve in sorted(curves, key=lambda c: (c.band, c.unit, c.scale)):
        good = curve.ivar > 0
        if not good.any():
            continue
        time, value = np.asarray(curve.time[good], np.float64), curve.value[good].astype(np.float64)
        error = curve.ivar[good].astype(np.float64) ** -0.5
        is_magnitude = curve.unit.lower().startswith("mag")
        has_amplitude = is_magnitude
        if not is_magnitude:
            level = float(np.median(value))
            has_amplitude = level > 0
            if has_amplitude:
                above = np.maximum(value / level, FAINTEST)
                value, error = -2.5 * np.log10(above), 1.0857 * error / level / above
            else:
                scale = float(np.std(value)) or 1.0
                value, error = (level - value) / scale, error / scale
        one = _Good(curve.band, time, value, error, is_magnitude, has_amplitude)
        if curve.band not in found or len(found[curve.band].time) < len(time):
            found[curve.band] = one
    most = sorted(found.values(), key=lambda b: (-len(b.time), b.name))[:BANDS]
    return sorted(most, key=lambda b: b.name)


def _moments(band: _Good) -> Scalars:
    """Statistics of one band that don't need a period."""
    y, n, b = band.value, len(band.value), band.name
    weight = _weights(band)
    out: Scalars = {}
    if band.is_magnitude:
        out[f"lc_mean_{b}"] = float(np.sum(weight * y)), float(np.sqrt(np.sum(weight**2 * band.error**2)))
    sd = float(np.std(y))
    if n < 5 or not sd > 1e-6 * max(1.0, float(np.abs(y).max())) / 10:
        return out
    z = (y - y.mean()) / sd
    p = np.percentile(y, PERCENTILES)
    wide = p[-1] - p[0]
    noise = float(np.median(band.error))
    if band.has_amplitude:
        out[f"lc_amplitude_{b}"] = wide / 2, sd * 1.5 / np.sqrt(n)
    out[f"lc_scatter_{b}"] = np.log10(sd / noise), 0.434 / np.sqrt(2 * n)
    out[f"lc_skew_{b}"] = np.mean(z**3), np.sqrt(6 / n)
    out[f"lc_kurtosis_{b}"] = np.mean(z**4) - 3, np.sqrt(24 / n)
    out[f"lc_eta_{b}"] = np.log10(np.mean(np.diff(z) ** 2)), 0.434 / np.sqrt(n)
    out[f"lc_beyond_{b}"] = np.mean(np.abs(z) > 1), UNKNOWN
    steps = np.cumsum(z) / n
    out[f"lc_cusum_{b}"] = steps.max() - steps.min(), UNKNOWN
    if wide > 0:
        for k, part in enumerate((20, 35, 50, 65, 80), 1):
            out[f"lc_mid{part}_{b}"] = (p[6 + k] - p[6 - k]) / wide, UNKNOWN
        out[f"lc_asymmetry_{b}"] = (p[-1] + p[0] - 2 * p[6]) / wide, UNKNOWN
    t = band.time - band.time.mean()
    if t[-1] > t[0]:
        out[f"lc_trend_{b}"] = np.sum(t * z) / np.sum(t**2) * (t[-1] - t[0]), np.sqrt(12 / n)
    return out


def _weights(band: _Good) -> np.ndarray:
    weight = 1 / (band.error**2 + (SOFT * np.std(band.value)) ** 2 + 1e-12)
    return weight / weight.sum()


def _periodic(bands: Sequence[_Good]) -> Scalars:
    """What needs a period: the period, the shape of the curve and how the bands differ."""
    if not bands:
        return {}
    start = min(b.time[0] for b in bands)
    span = max(b.time[-1] for b in bands) - start
    used, ready = [], []
    for band in bands:
        if len(band.time) >= 8 and np.std(band.value) > 1e-7:
            weight = _weights(band)
            value = band.value - np.sum(weight * band.value)
            used.append(band)
            ready.append(Band(band.time - start, value, weight, float(np.median(band.error))))
    found = find_period(ready, span)
    if found is None:
        return {}
    n = sum(len(b.time) for b in ready)
    out: Scalars = {}
    out["lc_log_period"] = -np.log10(found.frequency), 0.434 * found.error / found.frequency
    out["lc_cycles"] = np.log10(found.frequency * span), UNKNOWN
    out["lc_power"] = found.reduced[0], UNKNOWN
    out["lc_power_all"] = found.reduced[-1], UNKNOWN
    left = max(1 - found.reduced[found.order - 1], 1e-6)
    out["lc_significance"] = np.log10(max(-n * np.log(left) - 2 * found.order * np.log(n), 1.0)), UNKNOWN
    out["lc_order"] = found.order, UNKNOWN
    out["lc_log_period2"] = -np.log10(found.second[0]), UNKNOWN
    out["lc_less2"] = found.second[1], UNKNOWN
    for low, high, power in zip(EDGES[:-1], EDGES[1:], found.profile, strict=True):
        out[f"lc_power_{low:g}_{high:g}d"] = power, UNKNOWN
    out.update(_shape(found, ready))
    out.update(_folded(found, ready))
    for band, one, series in zip(used, ready, found.series, strict=True):
        if band.has_amplitude:
            curve = _series(series, found.order)
            out[f"lc_fourier_{band.name}"] = np.ptp(curve) / 2, np.std(one.value) * np.sqrt(2 / len(one.time))
    for i in range(len(used) - 1):
        first, second = found.series[i : i + 2, int(np.argmax(np.abs(found.series[i, :2])))]
        pair = f"{used[i].name}_{used[i + 1].name}"
        noise = [np.std(b.value) * np.sqrt(2 / len(b.time) * left) for b in ready[i : i + 2]]
        relative = np.hypot(noise[0] / max(abs(first), 1e-9), noise[1] / max(abs(second), 1e-9))
        if used[i].has_amplitude and used[i + 1].has_amplitude and min(abs(first), abs(second)) > 1e-6:
            out[f"lc_ratio_{pair}"] = np.log10(abs(first) / abs(second)), 0.434 * relative
        out[f"lc_lag_{pair}"] = np.angle(second / first) / (2 * np.pi), relative / (2 * np.pi)
    return out


def _series(series: np.ndarray, order: int) -> np.ndarray:
    """A series (k,) over one period, at 64 phases."""
    k = np.arange(1, order + 1)
    return np.real(np.conj(series[:order]) @ np.exp(2j * np.pi * np.outer(k, np.arange(64) / 64)))


def _shape(found: Periodic, bands: Sequence[Band]) -> Scalars:
    """Ratios and phases of the harmonics of the band where the curve is seen best."""
    seen = [np.sqrt(len(b.time)) * np.ptp(_series(s, found.order)) / max(b.noise, 1e-9)
            for s, b in zip(found.series, bands, strict=True)]  # fmt: skip
    best = int(np.argmax(seen))
    c, band = found.series[best], bands[best]
    left = max(1 - found.reduced[-1], 1e-6)
    noise = np.sqrt(2 * left * np.sum(band.weight * band.value**2) / len(band.time))
    first = max(abs(c[0]), noise)
    out: Scalars = {}
    for k in (2, 3, 4):
        out[f"lc_r{k}1"] = abs(c[k - 1]) / first, noise / first
        phi = np.angle(c[k - 1]) - k * np.angle(c[0])
        sure = abs(c[k - 1]) / np.hypot(abs(c[k - 1]), noise)
        out[f"lc_cos_phi{k}1"] = np.cos(phi) * sure, UNKNOWN
        out[f"lc_sin_phi{k}1"] = np.sin(phi) * sure, UNKNOWN
    curve = _series(c, found.order)
    faint, bright = int(np.argmax(curve)), int(np.argmin(curve))
    out["lc_rise"] = ((bright - faint) % 64) / 64, UNKNOWN
    out["lc_width"] = np.mean(curve > (curve.max() + curve.min()) / 2), UNKNOWN
    return out


def _folded(found: Periodic, bands: Sequence[Band]) -> Scalars:
    """Statistics of the folded curves, all bands in units of their scatter."""
    time = np.concatenate([b.time for b in bands])
    z = np.concatenate([b.value / np.std(b.value) for b in bands])
    out: Scalars = {}
    for name, turns in (("lc_fold_eta", 1.0), ("lc_fold_eta2", 2.0), ("lc_fold_half", 0.5)):
        order = np.argsort((time * found.frequency / turns) % 1, kind="stable")
        out[name] = np.log10(np.mean(np.diff(z[order]) ** 2) + 1e-6), UNKNOWN
        if turns == 1.0:
            steps = np.cumsum(z[order]) / len(z)
            out["lc_fold_cusum"] = steps.max() - steps.min(), UNKNOWN
    k = np.arange(1, found.order + 1)
    model = np.concatenate([
        np.real(np.exp(2j * np.pi * np.outer(b.time * found.frequency, k)) @ np.conj(c[: found.order])) / np.std(b.value)
        for b, c in zip(bands, found.series, strict=True)])  # fmt: skip
    rest = z - model
    out["lc_rest_mad"] = np.log10(np.median(np.abs(rest - np.median(rest))) / np.median(np.abs(z - np.median(z)))), UNKNOWN
    order = np.argsort(time, kind="stable")
    rest = rest[order] / np.std(rest)
    out["lc_rest_eta"] = np.log10(np.mean(np.diff(rest) ** 2)), UNKNOWN
    out["lc_rest_skew"] = np.mean(rest**3), UNKNOWN
    return out


def _pair(one: _Good, two: _Good) -> Scalars:
    """How two bands go together, without a period."""
    out: Scalars = {}
    pair = f"{one.name}_{two.name}"
    if one.is_magnitude and two.is_magnitude:
        errors = [float(np.sqrt(np.mean(b.error**2) / len(b.time))) for b in (one, two)]
        means = [float(np.sum(_weights(b) * b.value)) for b in (one, two)]
        out[f"lc_colour_{pair}"] = means[0] - means[1], np.hypot(errors[0], errors[1])
    after = np.clip(np.searchsorted(two.time, one.time), 0, len(two.time) - 1)
    before = np.maximum(after - 1, 0)
    near = np.where(one.time - two.time[before] < two.time[after] - one.time, before, after)
    close = np.abs(two.time[near] - one.time) < TOGETHER
    if close.sum() >= 8:
        x, y = one.value[close], two.value[near[close]]
        x, y = x - x.mean(), y - y.mean()
        sx, sy = np.std(x), np.std(y)
        if sx > 1e-6 and sy > 1e-6:
            out[f"lc_correlation_{pair}"] = np.mean(x * y) / (sx * sy), 1 / np.sqrt(close.sum())
            out[f"lc_slope_{pair}"] = np.log10(sx / sy), UNKNOWN
            c = (x - y) / np.std(x - y)
            if np.all(np.isfinite(c)):
                out[f"lc_colour_skew_{pair}"] = np.mean(c**3), UNKNOWN
                out[f"lc_colour_slope_{pair}"] = np.mean(c * (x + y)) / np.std(x + y), UNKNOWN
    return out
