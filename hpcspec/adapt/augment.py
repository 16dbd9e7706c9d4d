"""What training changes of an object at random: noise, and what is left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcspec.config import Adapt
from hpcspec.stream.batch import GROUPS, Epochs, Patches, Scalars, Tokens
from hpcspec.stream.patches import LOG_ERROR
from hpcspec.stream.vocabulary import CURVES, KINDS, OBJECT, SPECTRA


def augmented(tokens: Tokens, kinds: np.ndarray, rng: np.random.Generator, settings: Adapt,
              shift: float = 0.0) -> Tokens:  # fmt: skip
    """A copy with noise of up to `settings.noise` σ, a share of its tokens left out, and at times all kinds of measurement but
    one; an object's own token stays. kinds: of the vocabulary's names; shift: of its spectra in ln λ."""
    size = rng.uniform(0, settings.noise) if settings.noise else 0.0
    of_scalars = kinds[tokens.scalars.name]
    there = sorted({*of_scalars[of_scalars != OBJECT].tolist(), *([SPECTRA] * bool(len(tokens.spectra[0]))),
                    *([CURVES] * bool(len(tokens.curves[0])))})  # fmt: skip
    wanted = np.ones(len(KINDS), bool)
    if len(there) > 1 and rng.random() < settings.drop_kinds:
        wanted[:] = False
        wanted[[OBJECT, int(rng.choice(there))]] = True
    allowed = [(of_scalars != OBJECT) & wanted[of_scalars], *(np.full(len(group[0]), wanted[kind])
               for kind, group in ((SPECTRA, tokens.spectra), (CURVES, tokens.curves)))]  # fmt: skip
    everything = np.concatenate(allowed)
    left = everything & (rng.random(len(everything)) >= rng.uniform(*settings.dropped))
    if everything.any() and not left.any():
        left[rng.choice(np.flatnonzero(everything))] = True
    keep = np.split(left, np.cumsum([len(of) for of in allowed[:-1]]))
    keep[0] |= of_scalars == OBJECT
    scalars, spectra, curves = (form(*(x[k] for x in group)) for form, group, k in zip(GROUPS, tokens.groups, keep, strict=True))
    moved = spectra._replace(coordinates=spectra.coordinates * np.float32(np.exp(shift)))
    return Tokens(_noisy_scalars(scalars, rng, size), _noisy_spectra(moved, rng, size), _noisy_curves(curves, rng, size))


def _noise(sigma: Any, rng: np.random.Generator, size: float, most: float = 10 ** LOG_ERROR[1]) -> Any:
    good = np.isfinite(sigma)
    limited = np.where(good, np.minimum(np.where(good, sigma, 0), most), 0)
    return (size * rng.standard_normal(sigma.shape, np.float32) * limited).astype(np.float32)


def _noisy_scalars(of: Scalars, rng: np.random.Generator, size: float) -> Scalars:
    return of._replace(value=of.value + _noise(of.error, rng, size, np.inf), error=of.error * np.float32(np.hypot(1, size)))


def _noisy_spectra(of: Patches, rng: np.random.Generator, size: float) -> Patches:
    values, added = of.values.copy(), _noise(of.sigma, rng, size)
    values[..., 2] += added / np.maximum(np.abs(values[..., 0]), 0.1)  # the flux is near its local level
    values[..., 0] += added
    values[..., 1] += np.where(np.isfinite(of.sigma), 0.5 * np.log10(1 + size**2), 0).astype(np.float32)
    return of._replace(values=values)


def _noisy_curves(of: Epochs, rng: np.random.Generator, size: float) -> Epochs:
    """The phase begins anywhere: the survey's first epoch means nothing."""
    return of._replace(values=of.values + _noise(of.sigma, rng, size), sigma=of.sigma * np.float32(np.hypot(1, size)),
                       phases=(of.phases + np.float32(rng.random())) % np.float32(1))  # fmt: skip
