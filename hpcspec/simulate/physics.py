"""Noiseless spectra of stars, galaxies and quasars with known truth, at any vacuum wavelength.

Lines are evaluated with a width that already includes the instrument's line-spread function, so nothing is convolved.
The recipe is analytic and qualitative: lines and breaks are where the real ones are and answer to the labels as the real
ones do, but it is no model atmosphere, and results on such spectra are to be reported as simulated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hpcspec.simulate.lines import BANDS, Atmosphere, hydrogen_lines, strong_lines, weak_lines

LIGHT = 299792.458  # km/s
REFERENCE = 6500.0  # Å, where a spectrum's amplitude is defined

# Emission lines of galaxies: vacuum Å and the group whose strength they share, with their share in it.
NEBULAR = {
    "OII": ((3727.09, 0.42), (3729.88, 0.58)), "NeIII": ((3869.86, 1.0),),
    "H": ((4102.89, 0.09), (4341.68, 0.16), (4862.68, 0.35), (6564.61, 1.0)),
    "OIII": ((4960.30, 0.34), (5008.24, 1.0)), "NII": ((6549.86, 0.34), (6585.27, 1.0)), "SII": ((6718.29, 1.0), (6732.67, 0.75)),
    "SIII": ((9071.1, 0.4), (9533.2, 1.0)),
}  # fmt: skip
# Broad lines of quasars: vacuum Å, rest equivalent width (Å), width relative to that of Mg II.
BROAD = [
    (1033.8, 10.0, 1.3), (1215.67, 75.0, 1.0), (1240.8, 18.0, 1.4), (1305.0, 3.0, 1.0), (1398.3, 9.0, 1.4), (1549.06, 30.0, 1.2),
    (1640.4, 6.0, 2.0), (1860.0, 4.0, 1.5), (1908.73, 22.0, 1.6), (2798.75, 33.0, 1.0), (4102.89, 6.0, 1.1),
    (4341.68, 14.0, 1.1), (4862.68, 48.0, 1.0), (5877.25, 5.0, 1.2), (6564.61, 200.0, 0.9),
]  # fmt: skip
# Fe II and Balmer continuum humps of quasars: vacuum Å, rest equivalent width (Å), sigma (Å).
IRON = [(2080.0, 25.0, 60.0), (2500.0, 60.0, 110.0), (2950.0, 20.0, 80.0), (3300.0, 35.0, 150.0), (4570.0, 30.0, 55.0),
        (5270.0, 28.0, 60.0)]  # fmt: skip


def add_lines(wavelength: np.ndarray, centre: np.ndarray, sigma: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Sum of Gaussians (n,) of the given centres, sigmas and areas (all Å, (lines,)) on an increasing grid (n,)."""
    first = np.searchsorted(wavelength, centre - 4 * sigma)
    reach = int((np.searchsorted(wavelength, centre + 4 * sigma) - first).max(initial=0))
    if reach == 0:
        return np.zeros(len(wavelength))
    index = first[:, None] + np.arange(reach)
    inside = index < len(wavelength)
    index = np.minimum(index, len(wavelength) - 1)
    x = (wavelength[index] - centre[:, None]) / sigma[:, None]
    value = np.exp(-0.5 * x * x) * (area / (np.sqrt(2 * np.pi) * sigma))[:, None] * inside
    return np.bincount(index.ravel(), value.ravel(), minlength=len(wavelength))


def _add_wings(wavelength: np.ndarray, centre: np.ndarray, half: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Sum of Lorentzians (n,) of half widths `half` and areas `area` (Å, (lines,))."""
    near = (centre > wavelength[0] - 60 * half) & (centre < wavelength[-1] + 60 * half)
    x = (wavelength - centre[near, None]) / half[near, None]
    return (area[near] / (np.pi * half[near])) @ (1 / (1 + x * x))


def _step(x: np.ndarray) -> np.ndarray:
    """A smooth step (n,) from 0 to 1."""
    return 1 / (1 + np.exp(-np.clip(x, -50, 50)))


def planck(wavelength: np.ndarray, teff: float) -> np.ndarray:
    """Planck's B_λ (arbitrary unit) at wavelengths (n,) in Å."""
    return 1e18 / wavelength**5 / np.expm1(1.438777e8 / (wavelength * teff))


def reddening(wavelength: np.ndarray, ebv: float) -> np.ndarray:
    """Transmission (n,) for E(B-V) magnitudes: a power law of A_V = 3.1 E(B-V), a fair fit from 3500 Å to 1.7 µm."""
    return 10 ** (-0.4 * 3.1 * ebv * (5500.0 / wavelength) ** 1.5)


def stellar_continuum(wavelength: np.ndarray, air: Atmosphere) -> np.ndarray:
    """Continuum (n,) at rest wavelengths (Å): Planck, with the haze of blue metal lines and the Balmer jump."""
    haze = 0.30 * 10 ** (0.35 * air.fe_h) * np.clip(air.theta / 0.872, 0.2, 1.6) ** 3
    tau = haze * (np.clip((4500 - wavelength) / 1000, 0, 2) ** 1.5 + 0.7 * _step((3990 - wavelength) / 12))
    jump = 0.25 * 10 ** np.minimum(0.35 * air.hydrogen(np.array(10.2)), 0.6)
    return planck(wavelength, air.teff) * np.exp(-tau - jump * _step((3670 - wavelength) / 15))


def stellar_depth(wavelength: np.ndarray, lsf: np.ndarray, air: Atmosphere, broadening: float) -> np.ndarray:
    """Optical depth (n,) of all lines at rest wavelengths (n,) (Å).

    lsf: Gaussian sigma (Å) of the instrument at each wavelength, in the star's frame; broadening: the star's own, km/s.
    """
    low, high = wavelength[0], wavelength[-1]

    def sigma(centre: np.ndarray) -> np.ndarray:
        return np.hypot(np.interp(centre, wavelength, lsf), centre * broadening / LIGHT)

    weak = weak_lines().between(low - 10, high + 10)
    x = 10 ** (air.metals(weak) + weak.x)
    use = x > 3e-3
    x, centre = x[use], weak.wavelength[use]
    tau = add_lines(wavelength, centre, sigma(centre), 1.5e-5 * centre * x / (1 + x) ** 0.75)
    strong = strong_lines()
    width = strong.x * 10 ** (0.5 * (air.metals(strong) + strong.pressure * (air.logg - 4.44)))
    width = width / (1 + width / 40)
    tau += _add_wings(wavelength, strong.wavelength, np.hypot(width / 3, 1.2 * sigma(strong.wavelength)), width)
    centre, chi, solar = hydrogen_lines()
    width = solar * 10 ** (0.5 * air.hydrogen(chi) + 0.08 * (air.logg - 4.44))
    width = width / (1 + width / (6 * solar))
    tau += _add_wings(wavelength, centre, np.hypot(np.hypot(width / 3.2, 0.4 * solar), 1.2 * sigma(centre)), width)
    for name, head, tail, depth in BANDS:
        strength = 10 ** air.molecule(name)
        if low < head + 6 * tail and high > head and strength > 1e-3:
            edge = _step((wavelength - head) / (0.6 * np.interp(head, wavelength, lsf) + 0.8))
            tau += depth * strength / (1 + 0.25 * strength) * edge * np.exp(-np.maximum(wavelength - head, 0) / tail)
    return tau


@dataclass(frozen=True)
class Object(ABC):
    """What is known of every object: ICRS position (degrees), E(B-V), flux amplitude at 6500 Å (1e-17 erg/s/cm²/Å)."""

    ra: float
    dec: float
    ebv: float
    amplitude: float

    kind = ""

    @property
    @abstractmethod
    def z(self) -> float:
        """Redshift (for a star v/c)."""

    @property
    @abstractmethod
    def labels(self) -> Mapping[str, float]:
        """The labels that apply: teff, logg, fe_h for a star, z for the others."""

    @abstractmethod
    def rest(self, wavelength: np.ndarray, lsf: np.ndarray) -> np.ndarray:
        """Flux (n,) in arbitrary unit at rest wavelengths (n,), Å, with lines as wide as the sigma `lsf` (n,), Å, says."""

    @abstractmethod
    def level(self) -> float:
        """The smooth flux at the reference wavelength, in the unit of `rest`."""

    def flux(self, wavelength: np.ndarray, lsf: np.ndarray, frame: str = "observed") -> np.ndarray:
        """Noiseless flux (n,), 1e-17 erg/s/cm²/Å, at increasing vacuum wavelengths (n,), Å.

        lsf: Gaussian sigma (n,), Å, of the instrument; frame: "observed", or "rest" for spectra delivered so.
        """
        shift = 1.0 if frame == "rest" else 1 + self.z
        spectrum = self.rest(wavelength / shift, lsf / shift)
        return self.amplitude / self.level() * spectrum * self.transmission(wavelength)

    def transmission(self, wavelength: np.ndarray) -> np.ndarray:
        """The share of light (n,) that interstellar dust lets through at observed wavelengths (n,), Å."""
        return reddening(wavelength, self.ebv)


@dataclass(frozen=True)
class Star(Object):
    """A star: Teff (K), log g (cm s⁻²), [Fe/H], [α/Fe] (dex), radial velocity and line broadening (km/s)."""

    teff: float
    logg: float
    fe_h: float
    alpha_fe: float
    velocity: float
    broadening: float

    kind = "STAR"

    @property
    def z(self) -> float:
        return self.velocity / LIGHT

    @property
    def labels(self) -> Mapping[str, float]:
        return {"teff": self.teff, "logg": self.logg, "fe_h": self.fe_h}

    @property
    def atmosphere(self) -> Atmosphere:
        return Atmosphere(self.teff, self.logg, self.fe_h, self.alpha_fe)

    def level(self) -> float:
        return float(planck(np.array(REFERENCE), self.teff))

    def rest(self, wavelength: np.ndarray, lsf: np.ndarray) -> np.ndarray:
        air = self.atmosphere
        return stellar_continuum(wavelength, air) * np.exp(-stellar_depth(wavelength, lsf, air, self.broadening))

    def continuum(self, wavelength: np.ndarray) -> np.ndarray:
        """The flux (n,) without lines, 1e-17 erg/s/cm²/Å, at observed vacuum wavelengths (n,), Å."""
        shape = stellar_continuum(wavelength / (1 + self.z), self.atmosphere)
        return self.amplitude / self.level() * shape * self.transmission(wavelength)


@dataclass(frozen=True)
class Galaxy(Object):
    """A galaxy: redshift, share of young light at 6500 Å, [Fe/H], velocity dispersion (km/s), rest equivalent widths of the
    emission lines by group (Å), and their width (km/s)."""

    redshift: float
    young: float
    fe_h: float
    dispersion: float
    emission: Mapping[str, float] = field(default_factory=dict)
    gas: float = 100.0

    kind = "GALAXY"
    OLD, YOUNG = (4700.0, 3.0), (9500.0, 4.2)

    @property
    def z(self) -> float:
        return self.redshift

    @property
    def labels(self) -> Mapping[str, float]:
        return {"z": self.redshift}

    def level(self) -> float:
        return 1.0

    def rest(self, wavelength: np.ndarray, lsf: np.ndarray) -> np.ndarray:
        light = np.zeros(len(wavelength))
        for share, (teff, logg) in ((1 - self.young, self.OLD), (self.young, self.YOUNG)):
            air = Atmosphere(teff, logg, self.fe_h, 0.2)
            star = stellar_continuum(wavelength, air) * np.exp(-stellar_depth(wavelength, lsf, air, self.dispersion))
            light += share * star / planck(np.array(REFERENCE), teff)
        rows = [(w, part * self.emission[g]) for g, lines in NEBULAR.items() if g in self.emission for w, part in lines]
        if rows:
            centre, area = np.array(rows).T
            sigma = np.hypot(np.interp(centre, wavelength, lsf), centre * self.gas / LIGHT)
            light += add_lines(wavelength, centre, sigma, area)
        return light


@dataclass(frozen=True)
class Quasar(Object):
    """A quasar: redshift, slope of F_λ, velocity width (sigma, km/s) of its broad lines, their strength relative to the
    mean by line, and the Lyα forest's absorbers: rest wavelengths as fractions of Lyα and optical-depth factors."""

    redshift: float
    slope: float
    width: float
    strength: np.ndarray
    absorbers: np.ndarray
    depths: np.ndarray

    kind = "QSO"

    @property
    def z(self) -> float:
        return self.redshift

    @property
    def labels(self) -> Mapping[str, float]:
        return {"z": self.redshift}

    def level(self) -> float:
        return (REFERENCE / (1 + self.redshift) / 3000.0) ** self.slope

    def rest(self, wavelength: np.ndarray, lsf: np.ndarray) -> np.ndarray:
        continuum = (wavelength / 3000.0) ** self.slope
        centre, ew, relative = np.array(BROAD).T
        sigma = centre * self.width * relative / LIGHT
        lines = add_lines(wavelength, centre, sigma, ew * self.strength[:-1])
        centre, ew, sigma = np.array(IRON).T
        lines += add_lines(wavelength, centre, sigma, ew * self.strength[-1])
        centre = np.array([4960.30, 5008.24])
        sigma = np.hypot(np.interp(centre, wavelength, lsf), centre * 300.0 / LIGHT)
        lines += add_lines(wavelength, centre, sigma, np.array([3.5, 10.5]))
        flux = continuum * (1 + lines)
        blue = wavelength < 1215.67
        if blue.any():
            flux[blue] *= np.exp(-self._forest(wavelength[blue], lsf[blue]))
        return flux

    def _forest(self, wavelength: np.ndarray, lsf: np.ndarray) -> np.ndarray:
        centre = 1215.67 * self.absorbers
        thickness = (centre / 1215.67 * (1 + self.redshift) / 3.5) ** 3.2
        sigma = np.hypot(np.interp(centre, wavelength, lsf), centre * 25.0 / LIGHT)
        tau = add_lines(wavelength, centre, sigma, 0.7 * self.depths * np.minimum(thickness, 2.0))
        return tau + 6 * _step((912 - wavelength) / 1.5)
