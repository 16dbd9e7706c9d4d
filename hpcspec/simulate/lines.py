"""Where spectral lines lie and how strong they are in a star: a scaled Saha-Boltzmann recipe relative to the Sun.

The strength x of a line (line over continuum opacity) follows from its species' ionisation, its excitation potential and
the opacity of H-, with one electron pressure for the whole atmosphere (Gray, "The Observation and Analysis of Stellar
Photospheres", chapters 1, 8 and 13). Well-known lines have their true vacuum wavelengths; the many weak ones are drawn once
from a fixed internal seed, so they are the same for every star and every survey, but are not those of a real atlas.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import numpy as np

SUN_TEFF, SUN_LOGG = 5777.0, 4.44
RYDBERG = 1.0967758e-3  # of hydrogen, 1/Å

# Species: first ionisation potential (eV), share of the weak lines, whether it follows [α/Fe].
SPECIES = {
    "Fe": (7.90, 0.50, 0), "Ti": (6.83, 0.11, 1), "Cr": (6.77, 0.08, 0), "Ni": (7.64, 0.10, 0), "Ca": (6.11, 0.05, 1),
    "Si": (8.15, 0.07, 1), "Mn": (7.43, 0.04, 0), "Na": (5.14, 0.02, 0), "Mg": (7.65, 0.03, 1), "K": (4.34, 0.0, 0),
}  # fmt: skip

# Named metal lines: species, ionised, vacuum Å, excitation (eV), width in the Sun (Å), exponent of pressure broadening.
STRONG = [
    ("Ca", 1, 3934.77, 0.00, 15.0, 0.1), ("Ca", 1, 3969.59, 0.00, 11.0, 0.1), ("Ca", 0, 4227.92, 0.00, 1.4, 0.67),
    ("Fe", 0, 4046.96, 1.49, 0.8, 0.3), ("Fe", 0, 4272.96, 1.49, 0.8, 0.3), ("Fe", 0, 4384.78, 1.49, 1.0, 0.3),
    ("Fe", 0, 5271.00, 1.49, 0.7, 0.3), ("Fe", 0, 5330.00, 0.92, 0.5, 0.3), ("Mg", 0, 5168.76, 2.71, 0.9, 0.67),
    ("Mg", 0, 5174.13, 2.71, 1.3, 0.67), ("Mg", 0, 5185.05, 2.72, 1.6, 0.67), ("Na", 0, 5891.58, 0.00, 0.75, 0.67),
    ("Na", 0, 5897.56, 0.00, 0.55, 0.67), ("K", 0, 7667.01, 0.00, 0.25, 0.67), ("K", 0, 7701.08, 0.00, 0.18, 0.67),
    ("Na", 0, 8185.51, 2.10, 0.25, 0.8), ("Na", 0, 8197.08, 2.10, 0.35, 0.8), ("Ca", 1, 8500.35, 1.69, 1.3, 0.05),
    ("Ca", 1, 8544.44, 1.70, 3.4, 0.05), ("Ca", 1, 8664.52, 1.69, 2.6, 0.05), ("Mg", 0, 8809.18, 4.35, 0.5, 0.6),
    ("Mg", 0, 15028.1, 5.11, 1.0, 0.5), ("Mg", 0, 15044.4, 5.11, 0.9, 0.5), ("Mg", 0, 15052.0, 5.11, 0.6, 0.5),
    ("Mg", 0, 15745.0, 5.93, 0.7, 0.5), ("Mg", 0, 15753.2, 5.93, 1.0, 0.5), ("Mg", 0, 15770.1, 5.93, 1.2, 0.5),
    ("Si", 0, 15892.8, 5.08, 1.1, 0.4), ("Si", 0, 15964.4, 5.98, 0.6, 0.4), ("Si", 0, 16685.3, 5.98, 0.6, 0.4),
    ("K", 0, 15167.2, 2.67, 0.12, 0.5), ("Ca", 0, 16201.5, 4.53, 0.2, 0.4), ("Ni", 0, 15636.9, 5.30, 0.15, 0.3),
]  # fmt: skip

# Molecules: log strength = a (θ - θ0) + b [Fe/H] + c (log g - 4.44), θ = 5040 K / Teff.
MOLECULES = {
    "TiO": (12.0, 1.33, 1.0, -0.05), "CH": (3.0, 1.00, 0.9, -0.10), "CN": (3.5, 1.10, 1.3, -0.25),
    "MgH": (5.0, 1.15, 0.9, 0.35), "CO": (5.0, 1.15, 0.8, -0.20), "OH": (5.0, 1.22, 0.6, -0.10),
}  # fmt: skip

# Bands degraded to the red: molecule, vacuum Å of the head, length of the tail (Å), optical depth at log strength 0.
BANDS = [
    ("CN", 3861.0, 25.0, 0.25), ("CN", 4178.0, 35.0, 0.20), ("CH", 4286.0, 22.0, 0.35), ("MgH", 5102.0, 85.0, 0.20),
    ("TiO", 4762.0, 120.0, 0.45), ("TiO", 4956.0, 110.0, 0.60), ("TiO", 5169.0, 120.0, 0.65), ("TiO", 5449.0, 120.0, 0.60),
    ("TiO", 5848.0, 100.0, 0.45), ("TiO", 6160.0, 120.0, 0.60), ("TiO", 6653.0, 110.0, 0.55), ("TiO", 7055.0, 120.0, 0.80),
    ("TiO", 7591.0, 110.0, 0.65), ("TiO", 8434.0, 120.0, 0.55), ("TiO", 8861.0, 120.0, 0.50), ("CN", 7878.0, 110.0, 0.08),
    ("CN", 9150.0, 140.0, 0.10), ("CO", 15582.0, 16.0, 0.16), ("CO", 15780.0, 16.0, 0.18), ("CO", 15982.0, 17.0, 0.20),
    ("CO", 16190.0, 17.0, 0.21), ("CO", 16397.0, 18.0, 0.22), ("CO", 16618.0, 18.0, 0.22), ("CO", 16841.0, 19.0, 0.22),
]  # fmt: skip


@dataclass(frozen=True)
class Lines:
    """A line list, one row a line. All arrays (n,).

    wavelength: vacuum Å; ip: ionisation potential, eV; ion: 1 for the ionised species; chi: excitation potential, eV;
    alpha: 1 where the abundance follows [α/Fe]; molecule: index into MOLECULES or -1; x: log strength in the Sun (for a
    strong line its width in the Sun, Å); pressure: exponent of the pressure broadening.
    """

    wavelength: np.ndarray
    ip: np.ndarray
    ion: np.ndarray
    chi: np.ndarray
    alpha: np.ndarray
    molecule: np.ndarray
    x: np.ndarray
    pressure: np.ndarray

    def between(self, low: float, high: float) -> Lines:
        """The lines with low < wavelength < high (Å)."""
        use = (self.wavelength > low) & (self.wavelength < high)
        return Lines(*(getattr(self, f.name)[use] for f in fields(self)))


@cache
def strong_lines() -> Lines:
    """The named metal lines of STRONG."""
    species, ion, wavelength, chi, width, pressure = zip(*STRONG, strict=True)
    ip, _, alpha = zip(*(SPECIES[s] for s in species), strict=True)
    columns = (wavelength, ip, ion, chi, alpha, [-1] * len(ip), width, pressure)
    return Lines(*(np.array(c, np.float64 if k != 5 else np.int64) for k, c in enumerate(columns)))


@cache
def weak_lines() -> Lines:
    """3500 weak atomic and molecular lines by wavelength, denser to the blue, from a fixed seed."""
    rng = np.random.default_rng(20)
    optical, infrared, molecular = 2800, 460, 240
    n = optical + infrared
    wavelength = np.r_[3550 + 6900 * rng.random(optical) ** 1.6, rng.uniform(15000, 17100, infrared)]
    names = list(SPECIES)
    kind = rng.choice(len(names), n, p=[SPECIES[s][1] for s in names])
    ip, _, alpha = (np.array([SPECIES[s][k] for s in names])[kind] for k in range(3))
    ion = rng.random(n) < np.where(wavelength < 10500, 0.15, 0.03)
    chi = np.where(wavelength < 10500, rng.uniform(0.0, 4.7, n), rng.uniform(3.5, 6.3, n))
    x = rng.normal(np.where(wavelength < 10500, -0.5, -0.1), 0.8)
    m = molecular
    bands = np.array([list(MOLECULES).index(name) for name in ("CN", "CO", "OH")])
    every = Lines(
        np.r_[wavelength, rng.uniform(15000, 17100, m)], np.r_[ip, np.zeros(m)], np.r_[ion, np.zeros(m)].astype(float),
        np.r_[chi, np.zeros(m)], np.r_[alpha, np.zeros(m)], np.r_[np.full(n, -1), rng.choice(bands, m)],
        np.r_[x, rng.normal(0.0, 0.5, m)], np.zeros(n + m),
    )  # fmt: skip
    order = np.argsort(every.wavelength)  # found faster on a grid
    return Lines(*(getattr(every, f.name)[order] for f in fields(every)))


@cache
def hydrogen_lines() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Balmer, Paschen and Brackett lines: vacuum wavelength (Å), excitation potential (eV), width in the Sun (Å)."""
    rows = []
    for lower, upper, width in ((2, range(3, 15), 3.2), (3, range(8, 21), 1.0), (4, range(10, 21), 1.8)):
        for n in upper:
            wavelength = 1 / (RYDBERG * (lower**-2 - n**-2))
            rows.append((wavelength, 13.598 * (1 - lower**-2), width * (upper[0] / n) ** 0.7))
    return tuple(np.array(c) for c in zip(*rows, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Atmosphere:
    """What a star's labels say about every line at once: Teff (K), log g (cm s⁻²), [Fe/H] and [α/Fe] (dex)."""

    teff: float
    logg: float
    fe_h: float
    alpha_fe: float = 0.0

    @property
    def theta(self) -> float:
        """5040 K / Teff."""
        return 5040.0 / self.teff

    @property
    def log_pe(self) -> float:
        """Logarithm of the electron pressure (dyn cm⁻²), a fit to models between 3600 and 8000 K."""
        return 1.3 + 0.33 * (self.logg - SUN_LOGG) + 0.2 * self.fe_h + 8 * np.log10(self.teff / SUN_TEFF)

    def _log_fraction(self, ip: np.ndarray, ion: np.ndarray) -> np.ndarray:
        ratio = 10 ** (-0.08 - self.log_pe + 2.5 * np.log10(self.teff) - self.theta * ip)
        return np.where(ion > 0, np.log10(ratio / (1 + ratio)), -np.log10(1 + ratio))

    @property
    def _log_kappa(self) -> float:
        return self.log_pe + 2.5 * np.log10(self.theta) + 0.754 * self.theta

    def hydrogen(self, chi: np.ndarray) -> np.ndarray:
        """Log strength of hydrogen lines of excitation chi (eV), relative to the Sun."""
        return -chi * (self.theta - SUN.theta) - (self._log_kappa - SUN._log_kappa)

    def molecule(self, name: str) -> float:
        """Log strength of a molecule's bands."""
        a, theta0, b, c = MOLECULES[name]
        return a * (self.theta - theta0) + b * self.fe_h + c * (self.logg - SUN_LOGG)

    def metals(self, lines: Lines) -> np.ndarray:
        """Log strength of metal lines (n,), relative to the Sun; for molecular lines, of their molecule."""
        atoms = self.fe_h + self.alpha_fe * lines.alpha - lines.chi * (self.theta - SUN.theta)
        atoms += self._log_fraction(lines.ip, lines.ion) - SUN._log_fraction(lines.ip, lines.ion)
        atoms -= self._log_kappa - SUN._log_kappa
        molecules = np.array([self.molecule(name) for name in MOLECULES])
        return np.where(lines.molecule >= 0, molecules[lines.molecule], atoms)


SUN = Atmosphere(SUN_TEFF, SUN_LOGG, 0.0)
