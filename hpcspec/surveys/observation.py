"""What every reader delivers: one object as a set of measurements, each on its own native grid.

Conventions, the same for every survey: wavelengths are vacuum Å, times are days; `ivar` is 0 for every sample that must not
be used (the survey's own mask, NaN and inf folded in) and values are finite everywhere; positions are ICRS degrees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from hpcspec.surveys.grids import Grid

MOST = 1e37  # of what is kept in single precision; beyond it, squares and ratios of samples would not be finite
WAVELENGTHS = (1e-3, 1e12)  # Å, γ rays to radio
LONGEST_TIME = 1e9  # days, of either sign
NAME, TEXT, PARTS = 255, 1000, 1000  # characters of names and of other texts, and arms or bands of one object


class BadObject(ValueError):
    """One object that can't be used; the message is the reason written to the quarantine table."""

    def __init__(self, reason: str, object_id: str = ""):
        super().__init__(reason)
        self.reason, self.object_id = reason, object_id


@dataclass(frozen=True)
class Arm:
    """One contiguous stretch of native pixels: flux and ivar (n,), float32, on `grid` from pixel `first` on."""

    name: str
    grid: Grid
    first: int
    flux: np.ndarray
    ivar: np.ndarray

    @property
    def wavelength(self) -> np.ndarray:
        """Vacuum wavelengths (n,), float64, Å."""
        return self.grid.wavelength(self.first, len(self.flux))


@dataclass(frozen=True)
class Curve:
    """One band of a light curve: time (n,) float64, days, not falling; value and ivar (n,) float32 in `unit` and its inverse
    square. `scale` says what the times are: "hjd", "bjd", "jd", "mjd", with "_utc", "_tdb" or "_tcb" where it is known, or
    "relative" where the survey doesn't say."""

    band: str
    time: np.ndarray
    value: np.ndarray
    ivar: np.ndarray
    unit: str = "mag"
    scale: str = "hjd"


@dataclass(frozen=True)
class Observation:
    """One object as its survey observed it: spectra, light curves and scalars, any of which may be absent.

    scalars: name to (value, error), NaN for an error that is not known; a value that is not finite is left out by `check`.
    ra, dec: degrees, both NaN where the survey gives no position. meta holds the survey's own values under its own names
    (str, int or float), never an identifier as a float.
    """

    object_id: str
    survey: str
    ra: float
    dec: float
    arms: tuple[Arm, ...] = ()
    flux_unit: str = ""
    frame: str = "observed"
    meta: Mapping[str, str | int | float] = field(default_factory=dict)
    curves: tuple[Curve, ...] = ()
    scalars: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def sn_median(self) -> float:
        """Median signal to noise per sample over the good samples of all arms, or of all light curves where there is no arm."""
        sn = [v[i > 0] * np.sqrt(i[i > 0], dtype=np.float64) for v, i in self._samples()]
        return float(np.clip(np.median(np.concatenate(sn)), -MOST, MOST)) if sum(map(len, sn)) else 0.0

    @property
    def amplitude(self) -> float:
        """Median of the absolute flux over the good pixels of all arms, at least a tenth of their median error; 0 without."""
        flux, ivar = (np.concatenate(x).astype(np.float64) for x in zip(*self._samples(), strict=True)) if self.arms else ((), ())
        good = np.asarray(ivar) > 0
        if not self.arms or not good.any():
            return 0.0
        return float(max(np.median(np.abs(flux[good])), 0.1 / np.sqrt(np.median(ivar[good])), 1e-30))

    def _samples(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(a.flux, a.ivar) for a in self.arms] or [(c.value, c.ivar) for c in self.curves]


def make_arm(name: str, grid: Grid, first: int, flux: np.ndarray, ivar: np.ndarray, bad: np.ndarray | None = None) -> Arm:
    """An `Arm` with bad pixels folded in: where `bad` (n,) is True or flux or ivar is not finite or not positive,
    ivar becomes 0 (and a flux that is not finite becomes 0).

    Raises BadObject if the lengths differ.
    """
    return Arm(name, grid, int(first), *_folded(f"arm {name}: flux", flux, ivar, bad))


def make_curve(band: str, time: np.ndarray, value: np.ndarray, error: np.ndarray, bad: np.ndarray | None = None,
               unit: str = "mag", scale: str = "hjd") -> Curve:  # fmt: skip
    """A `Curve` of times, values and errors (n,) in time order; where `bad` (n,) is True, or value or error is not finite
    or the error not positive, ivar becomes 0. Samples without a time, or one of more than LONGEST_TIME, are left out.

    Raises BadObject if the lengths differ.
    """
    time, error = np.asarray(time, np.float64), np.asarray(error, np.float64)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        ivar = np.where(error > 0, error**-2.0, 0.0)
    value, ivar = _folded(f"light curve {band}: value", value, ivar, bad)
    if time.shape != value.shape:
        raise BadObject(f"light curve {band}: time {time.shape} and value {value.shape} differ in length")
    order = np.argsort(time, kind="stable")
    order = order[np.abs(time[order]) <= LONGEST_TIME]
    return Curve(band, time[order], value[order], ivar[order], unit, scale)


def _folded(what: str, value: np.ndarray, ivar: np.ndarray, bad: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    value, ivar = np.asarray(value), np.asarray(ivar)
    if value.ndim != 1 or value.shape != ivar.shape or (bad is not None and np.shape(bad) != value.shape):
        mask = "" if bad is None else f", mask {np.shape(bad)}"
        raise BadObject(f"{what} {value.shape}, ivar {ivar.shape}{mask} differ in length")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf and is folded in below
        value, ivar = value.astype(np.float32), ivar.astype(np.float32)
    finite = np.isfinite(value)
    use = finite & np.isfinite(ivar) & (ivar > 0)
    if bad is not None:
        use &= ~np.asarray(bad, bool)
    return np.where(finite, value, np.float32(0)), np.where(use, ivar, np.float32(0))


def trimmed(arm: Arm) -> Arm | None:
    """The arm without its leading and trailing bad pixels; None if it has no good one."""
    good = np.flatnonzero(arm.ivar > 0)
    if len(good) == 0:
        return None
    use = slice(int(good[0]), int(good[-1]) + 1)
    return Arm(arm.name, arm.grid, arm.first + use.start, arm.flux[use], arm.ivar[use])


def check(one: Observation) -> Observation:
    """The observation, if a model can use it; scalars that are not finite and meta without a name are left out, and long
    texts are cut.

    Raises BadObject for an identifier that is empty or can't stand in a FITS table, names that can't be printed or are too
    long, a position off the sky, wavelengths that are not finite, positive, plausible and increasing, times that are not
    finite or fall, or no valid measurement at all.
    """
    if not one.object_id:
        raise BadObject("no object identifier")
    if not is_name(one.object_id):
        raise BadObject(f"the object identifier is not a name of at most {NAME} printable characters", one.object_id)
    if not one.object_id.isascii() or one.object_id != one.object_id.strip():
        reason = "the object identifier is not ASCII, or begins or ends with blanks: a catalogue can't hold it"
        raise BadObject(f"{reason}: {one.object_id[:40]!r}", one.object_id)
    nowhere = np.isnan(one.ra) and np.isnan(one.dec)
    if not (nowhere or (np.isfinite(one.ra) and -90 <= one.dec <= 90 and 0 <= one.ra <= 360)):
        raise BadObject(f"position off the sky: ra={one.ra} dec={one.dec}", one.object_id)
    names = {one.frame, *(a.name for a in one.arms), *(x for c in one.curves for x in (c.band, c.scale))}
    units = {one.flux_unit, *(c.unit for c in one.curves)} - {""}
    lost = next((x for x in sorted(names | units) if not is_name(x)), None)
    if lost is not None:
        raise BadObject(f"{lost[:40]!r} is not a name of a band, frame or unit", one.object_id)
    if len(one.arms) + len(one.curves) > PARTS:
        raise BadObject(f"{len(one.arms)} arms and {len(one.curves)} bands are more than {PARTS}", one.object_id)
    for arm in one.arms:
        w = arm.wavelength
        if len(w) == 0 or not np.all(np.isfinite(w)) or w[0] < WAVELENGTHS[0] or np.any(np.diff(w) <= 0):
            raise BadObject(f"arm {arm.name}: wavelengths are not finite, positive and increasing", one.object_id)
        if w[-1] > WAVELENGTHS[1]:
            raise BadObject(f"arm {arm.name}: wavelengths up to {w[-1]:.3g} Å are not plausible", one.object_id)
    for curve in one.curves:
        if np.any(np.diff(curve.time) < 0) or not np.all(np.abs(curve.time) <= LONGEST_TIME):
            raise BadObject(f"light curve {curve.band}: times are not finite and in order", one.object_id)
    scalars = {n: (float(v), float(e) if e > 0 and np.isfinite(np.float32(e)) else float("nan"))
               for n, (v, e) in one.scalars.items() if np.isfinite(np.float32(v))}  # fmt: skip
    if not any((ivar > 0).any() for ivar in (*(a.ivar for a in one.arms), *(c.ivar for c in one.curves))) and not scalars:
        raise BadObject("no valid pixel (every ivar is 0, or every flux is NaN)", one.object_id)
    if one.arms and not one.curves and not scalars and not any(np.any(a.flux[a.ivar > 0] != 0) for a in one.arms):
        raise BadObject("every valid flux is exactly 0", one.object_id)
    meta = {n: v[:TEXT] if isinstance(v, str) else v for n, v in one.meta.items() if is_name(n)}
    return replace(one, scalars=scalars, meta=meta) if (scalars, meta) != (one.scalars, one.meta) else one


def is_name(text: str) -> bool:
    """Whether a text can be the name of something: short, and on one line."""
    return 0 < len(text) <= NAME and text.isprintable()
