"""The tokens of an object by their definition, one by one; and random objects of every kind."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from hpcspec.stream.batch import CHANNELS, Epochs, Patches, Scalars, Tokens
from hpcspec.stream.epochs import SMALLEST
from hpcspec.stream.patches import LIMIT, LOCAL_HALF, LOCAL_LIMIT, LOCAL_PASSES, LOG_ERROR, SIGMA
from hpcspec.stream.vocabulary import PERIOD, Vocabulary
from hpcspec.surveys.observation import Curve, Observation, make_arm, make_curve
from tests.making import GRIDS, make, spectrum

Level = tuple[str, float, float]


def reference(one: Observation, of: Vocabulary) -> Tokens:
    """All tokens of an object."""
    scale = np.float32(one.amplitude) if np.float32(one.amplitude) > 0 else np.float32(1)
    spectra = patches(one, of, scale)
    curves, levels = epochs(one, of)
    return Tokens(scalars(one, of, float(scale), len(spectra.values) > 0, levels), spectra, curves)


def scalars(one: Observation, of: Vocabulary, scale: float, spectra: bool, levels: list[Level]) -> Scalars:
    """The object's own token, what the measurements were divided by, and what the survey measured."""
    rows = [("object", 0.0, 0.0)]
    if spectra:
        rows += [("log10_flux_scale", np.log10(scale), 0.0), ("log10_sn", np.log10(max(one.sn_median, 1e-3)), 0.0)]
    rows += [(f"level {band}", level, 0.0) for band, level, _ in levels]
    rows += [(f"log10_amplitude {band}", np.log10(amplitude), 0.0) for band, _, amplitude in levels]
    known = [(name, *one.scalars[name]) for name in of.measured if np.isfinite(one.scalars.get(name, (np.nan,))[0])]
    rows += [(name, value, 0.0 if np.isnan(error) else error) for name, value, error in known]
    return Scalars(np.array([of.names.index(name) for name, _, _ in rows]), *np.array([r[1:] for r in rows], np.float32).T)


def patches(one: Observation, of: Vocabulary, scale: np.float32) -> Patches:
    """The patches of its spectra, pixel by pixel."""
    rows: list[tuple[int, np.ndarray, np.ndarray, tuple[float, float]]] = []
    patch = of.patch
    for arm in one.arms if "spectra" in of.inputs else ():
        x, flux, ivar = arm.wavelength, arm.flux, arm.ivar
        good = ivar > 0
        f = (flux / scale).astype(np.float32)
        clipped = np.clip(f, -LIMIT, LIMIT)
        total, count = np.where(good, clipped, 0).astype(np.float64), good.astype(np.float64)
        for _ in range(LOCAL_PASSES):
            total, count = (np.array([v[max(0, i - LOCAL_HALF) : i + LOCAL_HALF + 1].sum() for i in range(len(v))])
                            for v in (total, count))  # fmt: skip
        level = np.where(count > 0, total / np.maximum(count, 1), 0)
        sigma = np.where(good, 1 / np.sqrt(np.where(good, ivar, 1).astype(np.float64)) / scale, np.inf)
        for a in range(-(arm.first % patch), len(x), patch):
            values, errors = np.tile([0.0, LOG_ERROR[1], 0.0], (patch, 1)), np.full(patch, np.inf)
            there = [(i - a, i) for i in range(a, a + patch) if 0 <= i < len(x)]
            for k, i in there:
                values[k, 0], errors[k] = (clipped[i], sigma[i]) if good[i] else (level[i], np.inf)
                if good[i]:
                    values[k, 1] = np.clip(np.log10(sigma[i]), *LOG_ERROR)
                    values[k, 2] = np.clip((f[i] - level[i]) / max(abs(level[i]), 0.1), -LOCAL_LIMIT, LOCAL_LIMIT)
            if arm.grid.kind == "table":
                (low, i), (high, j) = there[0], there[-1]
                step = (x[j] - x[i]) / (j - i) if j > i else 1.0
                middle = (x[i] + x[j]) / 2 + step * ((patch - 1) - (low + high)) / 2
            else:
                ends = arm.grid.at(arm.first + np.array([a, a + patch - 1]))
                step, middle = (ends[1] - ends[0]) / max(patch - 1, 1) if patch > 1 else 1.0, ends.mean()
            rows.append((int(np.isfinite(errors).sum()), values, errors, (middle, step)))
    kept = [r for r in rows if r[0] >= patch / 4] or [r for r in rows if r[0] > 0]
    return Patches(
        np.array([v for _, v, _, _ in kept]).reshape(-1, patch, CHANNELS),
        np.array([np.where(np.isinf(e), e, np.clip(e, *SIGMA)) for _, _, e, _ in kept]).reshape(-1, patch),
        np.array([c for _, _, _, c in kept]).reshape(-1, 2),
    )


def epochs(one: Observation, of: Vocabulary) -> tuple[Epochs, list[Level]]:
    """The patches of its light curves, epoch by epoch, and band, level and amplitude of each."""
    names = [f"{c.band} {c.unit}" for c in one.curves]
    read = [(name, c) for name, c in zip(names, one.curves, strict=True) if name in of.bands and (c.ivar > 0).any()]
    first = min((c.time[c.ivar > 0].min() for _, c in read), default=0.0)
    known = np.float32(one.scalars[PERIOD][0]) if PERIOD in of.measured and PERIOD in one.scalars else np.nan
    levels, rows, bands = [], [], []
    for name, c in read:
        good = c.ivar > 0
        value, sigma, time = c.value[good].astype(np.float64), c.ivar[good].astype(np.float64) ** -0.5, c.time[good] - first
        level = float(np.median(value))
        amplitude = max(1.4826 * float(np.median(np.abs(value - level))), SMALLEST * float(np.median(sigma)))
        levels.append((name, level, amplitude))
        phase = time / 10 ** float(known) % 1
        by_phase = np.argsort(np.nan_to_num(phase), kind="stable")  # by time where there is no period
        value, sigma, time, phase = value[by_phase], sigma[by_phase], time[by_phase], phase[by_phase]
        for a in range(0, len(value), of.epochs):
            row = np.array([0.0, np.inf, 0.0, np.nan])[:, None].repeat(of.epochs, 1)
            part = slice(a, min(a + of.epochs, len(value)))
            row[:, : part.stop - a] = [np.clip((value[part] - level) / amplitude, -LIMIT, LIMIT),
                                       np.clip(sigma[part] / amplitude, *SIGMA), time[part], phase[part]]  # fmt: skip
            rows.append(row)
            bands.append(of.bands.index(name))
    return Epochs(*np.array(rows).reshape(-1, 4, of.epochs).transpose(1, 0, 2), np.array(bands, np.int64)), levels


def assert_close(found: Tokens, wanted: Tokens) -> None:
    """The same but for the rounding of single precision."""
    np.testing.assert_array_equal(found.scalars.name, wanted.scalars.name)
    np.testing.assert_allclose(found.scalars.value, wanted.scalars.value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.scalars.error, wanted.scalars.error, rtol=1e-6)
    np.testing.assert_allclose(found.spectra.coordinates, wanted.spectra.coordinates, rtol=2e-7)
    np.testing.assert_allclose(found.spectra.values, wanted.spectra.values, rtol=2e-6, atol=3e-6)
    np.testing.assert_allclose(found.spectra.sigma, wanted.spectra.sigma, rtol=1e-6)
    np.testing.assert_array_equal(found.curves.band, wanted.curves.band)
    np.testing.assert_allclose(found.curves.values, wanted.curves.values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.curves.sigma, wanted.curves.sigma, rtol=1e-4)
    np.testing.assert_allclose(found.curves.times, wanted.curves.times, rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(found.curves.phases), np.isnan(wanted.curves.phases))
    apart = np.abs(found.curves.phases - wanted.curves.phases)
    assert (np.fmin(apart, 1 - apart)[np.isfinite(apart)] < 1e-5).all()


@st.composite
def curves(draw: st.DrawFn, number: int) -> Curve:
    """A light curve in a band that is known, or not, or in another unit; of good and bad epochs, some at the same time."""
    rng = np.random.default_rng(number)
    band, unit = draw(st.sampled_from([("V", "mag"), ("R", "mag"), ("V", "mag"), ("B", "mag"), ("V", "mJy")]))
    count, bad = draw(st.integers(0, 40)), draw(st.sampled_from([0.0, 0.3, 1.0]))
    times = rng.uniform(0, 10.0 ** draw(st.integers(-1, 4)), count).round(draw(st.integers(0, 6)))
    value = rng.normal(14, 10.0 ** draw(st.integers(-2, 1)), count)
    return make_curve(band, 2_450_000 + times, value, rng.uniform(0.01, 1, count), rng.random(count) < bad, unit)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Spectra on any grids, of good and bad stretches, with spikes, in any unit; light curves; scalars; or nothing of use."""
    number = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(number)
    arms = []
    for grid in draw(st.lists(st.sampled_from(sorted(GRIDS)), max_size=3)):
        one = make(grid, draw(st.integers(1, 400)), (number,))
        flux = one.flux * rng.choice([1, 1, 1, -1, 1e4], len(one.flux)) if draw(st.booleans()) else one.flux
        bad = np.sin(np.arange(len(flux)) / draw(st.integers(1, 100))) > draw(st.sampled_from([-2, -0.5, 0.3, 2]))
        arms.append(make_arm(one.name, one.grid, one.first, flux * 10.0 ** draw(st.integers(-17, 6)), one.ivar, bad))
    names = draw(st.sets(st.sampled_from([PERIOD, "parallax", "teff", "age"])))
    errors = st.just(np.nan) | st.floats(0.01, 10)
    known = {name: (float(np.float32(rng.normal(0, 2))), float(np.float32(draw(errors)))) for name in sorted(names)}
    of_curves = tuple(draw(curves(number + i)) for i in range(draw(st.integers(0, 3))))
    return spectrum(number, arms=tuple(arms), curves=of_curves, scalars=known)
