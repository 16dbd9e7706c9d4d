"""The four instruments: native grids, line-spread functions, noise, sky lines and bad pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hpcspec.simulate.physics import Object
from hpcspec.surveys.grids import air_to_vacuum

APOGEE_START, APOGEE_STEP, APOGEE_PIXELS = 4.179, 6e-6, 8575
CHIPS = {"a": (322, 3242), "b": (3648, 6048), "c": (6412, 8306)}  # first and last+1 pixel, blue to red
HERMES = {"1": (4713.6, 0.0460), "2": (5649.0, 0.0547), "3": (6478.0, 0.0631), "4": (7585.3, 0.0735)}  # air Å: start, step
HERMES_PIXELS = 4096
LOW_STEP, LOW_FIRST = 3e-4, 11894


@dataclass(frozen=True)
class ArmModel:
    """One arm: vacuum wavelengths (n,) and the sigma (n,) of its line-spread function in Å, its response (n,) (flux unit
    per 1e-17 erg/s/cm²/Å), the variance (n,) that the sky adds in units of the median flux, and which pixels (n,) lie under
    bright sky lines."""

    name: str
    wavelength: np.ndarray
    lsf: np.ndarray
    response: np.ndarray
    sky: np.ndarray
    skyline: np.ndarray


@dataclass(frozen=True)
class Exposure:
    """One observed arm from pixel `first` of its `ArmModel` on. All arrays (n,): the response, the noiseless `expected`
    flux, the observed flux, its true standard error sigma, and dead and sky-line pixels. Dead pixels hold nonsense."""

    name: str
    first: int
    wavelength: np.ndarray
    response: np.ndarray
    expected: np.ndarray
    flux: np.ndarray
    sigma: np.ndarray
    dead: np.ndarray
    skyline: np.ndarray


@dataclass(frozen=True)
class Instrument:
    """A survey's spectrograph: its arms, the frame it delivers, the range of S/N per pixel (median over all pixels, drawn
    log-uniformly), the share of variance that is photon noise, and the mean number of dead pixels per thousand."""

    name: str
    arms: tuple[ArmModel, ...]
    sn: tuple[float, float]
    photon: float
    frame: str = "observed"
    dead: float = 4.0
    window: tuple[int, int, int, int] | None = None
    """Range of the first pixel and of the length, where spectra are slices of the grid."""

    arm: Mapping[str, ArmModel] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arm", {a.name: a for a in self.arms})

    def noiseless(self, target: Object) -> dict[str, np.ndarray]:
        """What the instrument would record without noise on each arm's whole grid: {arm: (n,)}."""
        return {a.name: a.response * target.flux(a.wavelength, a.lsf, self.frame) for a in self.arms}

    def observe(self, target: Object, rng: np.random.Generator) -> tuple[float, list[Exposure]]:
        """The S/N that was drawn and one exposure an arm."""
        low, high = np.log10(self.sn)
        sn = float(10 ** rng.uniform(low, high))
        first, length = (int(rng.integers(*self.window[:2])), int(rng.integers(*self.window[2:]))) if self.window else (0, None)
        span = slice(first, None if length is None else first + length)
        expected = {name: flux[span] for name, flux in self.noiseless(target).items()}
        level = float(np.median(np.concatenate(list(expected.values()))))
        shape = {n: np.sqrt((1 - self.photon) * self.arm[n].sky[span] + self.photon * f / level) for n, f in expected.items()}
        scale = float(np.median(np.concatenate([f / shape[n] for n, f in expected.items()]))) / sn
        return sn, [self._expose(self.arm[n], first, f, scale * shape[n], rng) for n, f in expected.items()]

    def _expose(self, arm: ArmModel, first: int, expected: np.ndarray, sigma: np.ndarray, rng: np.random.Generator) -> Exposure:
        n = len(expected)
        sigma = sigma * rng.uniform(0.93, 1.07, n)
        dead = np.zeros(n, bool)
        dead[rng.integers(0, n, rng.poisson(self.dead * n / 1000))] = True
        flux = expected + sigma * rng.standard_normal(n)
        flux = np.where(dead, rng.normal(0, 30, n) * np.median(sigma), flux)
        span = slice(first, first + n)
        return Exposure(arm.name, first, arm.wavelength[span], arm.response[span], expected, flux, sigma, dead, arm.skyline[span])


def _gauss(resolution: float, wavelength: np.ndarray) -> np.ndarray:
    return wavelength / (2.3548 * resolution)


def _optical(name: str, wavelength: np.ndarray, lsf: np.ndarray) -> ArmModel:
    """An arm under the night sky: blue end of low throughput, OH lines in the red, the same every night."""
    oh = np.random.default_rng(7)
    centre, height = oh.uniform(7240, 10400, 110), 6 * oh.lognormal(0, 0.8, 110)
    centre, height = np.r_[5578.9, 5891.6, 6302.0, 6365.5, centre], np.r_[60.0, 8.0, 15.0, 6.0, height]
    lines = (height[:, None] * np.exp(-0.5 * ((wavelength - centre[:, None]) / 1.4) ** 2)).sum(0)
    smooth = 1 + 0.8 * np.clip((wavelength - 7000) / 3000, 0, None) ** 2 + 6 * np.clip((4100 - wavelength) / 500, 0, None) ** 2
    return ArmModel(name, wavelength, lsf, np.ones(len(wavelength)), smooth + lines, lines > 8)


def sdss() -> Instrument:
    """SDSS: a slice of the log10 grid of 1e-4, R about 2000."""
    wavelength = 10 ** (1e-4 * np.arange(35500, 40180))  # 3548 to 10420 Å; a slice that would reach further ends there
    arm = _optical("SDSS", wavelength, _gauss(2000, wavelength))
    return Instrument("sdss", (arm,), (3, 60), 0.5, window=(0, 350, 3800, 4600))


def low_resolution() -> Instrument:
    """A survey of point sources, 3700 to 9000 Å on the log10 grid of LOW_STEP, R about 700."""
    wavelength = 10 ** (LOW_STEP * np.arange(LOW_FIRST, LOW_FIRST + 1288))
    return Instrument("low", (_optical("low", wavelength, _gauss(700, wavelength)),), (5, 60), 0.5)


def desi() -> Instrument:
    """DESI: three overlapping linear arms with lines of constant width (FWHM 1.8, 1.6 and 1.7 Å)."""
    arms = []
    for name, start, n, fwhm in (("B", 3600.0, 2751, 1.8), ("R", 5760.0, 2326, 1.6), ("Z", 7520.0, 2881, 1.7)):
        wavelength = start + 0.8 * np.arange(n)
        arms.append(_optical(name, wavelength, np.full(n, fwhm / 2.3548)))
    return Instrument("desi", tuple(arms), (3, 60), 0.5)


def apogee() -> Instrument:
    """APOGEE: three chips of the log10 grid, R about 22,500, at rest, with airglow lines."""
    grid = 10 ** (APOGEE_START + APOGEE_STEP * np.arange(APOGEE_PIXELS))
    glow = np.zeros(APOGEE_PIXELS, bool)
    centre = np.random.default_rng(8).choice(APOGEE_PIXELS, 130, replace=False)
    glow[np.clip(centre[:, None] + np.arange(-1, 2), 0, APOGEE_PIXELS - 1)] = True
    arms = []
    for name, (first, last) in CHIPS.items():
        w, line = grid[first:last], glow[first:last]
        arms.append(ArmModel(name, w, _gauss(22500, w), np.ones(len(w)), np.where(line, 400.0, 1.0), line))
    return Instrument("apogee", tuple(arms), (20, 200), 0.6, frame="rest")


def galah() -> Instrument:
    """GALAH: four arms of HERMES, linear in air, R about 28,000; flux in counts with the blaze left in."""
    arms = []
    for name, (start, step) in HERMES.items():
        w = air_to_vacuum(start + step * np.arange(HERMES_PIXELS))
        x = np.linspace(-1, 1, HERMES_PIXELS)
        glow = np.isin(np.arange(HERMES_PIXELS) // 6, np.random.default_rng([9, int(name)]).choice(682, 12, replace=False))
        response = 40 * (1 - 0.35 * x**2 + 0.1 * x) * (0.45 if name == "1" else 1.0)
        arms.append(ArmModel(name, w, _gauss(28000, w), response, np.where(glow, 150.0, 1.0), glow))
    return Instrument("galah", tuple(arms), (20, 200), 0.8)


INSTRUMENTS = {"sdss": sdss, "desi": desi, "apogee": apogee, "galah": galah}
