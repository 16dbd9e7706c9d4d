"""Small survey files in every layout the readers know, written from the datamodels, with known content.

Each writer puts one file (GALAH: four) with one object (DESI: three) into a folder, whose flux is larger by the share `more`
than what LAYOUTS tells. In each arm pixel BAD must not be used, by the survey's own mask, and GOOD is a good one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

BAD, GOOD = 20, 30


@dataclass(frozen=True)
class Layout:
    """One layout: its survey, its writer, the identifiers, and wavelength (Å), flux and ivar of pixel GOOD of the first arm."""

    survey: str
    write: Callable[..., None]
    object_ids: tuple[str, ...]
    wavelength: float
    flux: float
    ivar: float


def flux(n: int, more: float = 0.0) -> np.ndarray:
    """Positive, not constant, float32 (n,), larger by the share `more`."""
    return ((1 + more) * (10 + np.sin(np.arange(n) / 7))).astype("f4")


FLUX = float(flux(GOOD + 1)[GOOD])


def table(columns: dict[str, np.ndarray], name: str = "") -> fits.BinTableHDU:
    formats = {"f4": "E", "f8": "D", "i4": "J", "i8": "K", "b1": "L"}
    made = []
    for key, values in columns.items():
        code = formats.get(values.dtype.str[1:], f"{values.dtype.itemsize // 4}A")
        made.append(fits.Column(key, code if values.ndim == 1 else f"{values.shape[1]}{code}", array=values))
    return fits.BinTableHDU.from_columns(made, name=name)


def save(path: Path, hdus: list, **cards: str | int | float) -> None:
    hdus[0].header.update(cards)
    fits.HDUList(hdus).writeto(path)


def bit(n: int, value: int, dtype: str = "i4") -> np.ndarray:
    mask = np.zeros(n, dtype)
    mask[BAD] = value
    return mask


def coadd(n: int, case: Callable[[str], str], name: str, more: float) -> fits.BinTableHDU:
    loglam = (1e-4 * np.arange(35800, 35800 + n)).astype("f4")
    # Bit 19 (PARTIALREJECT) on the good pixel is a warning only.
    mask = bit(n, 1 << 23)
    mask[GOOD] = 1 << 19
    columns = {"flux": flux(n, more), "loglam": loglam, "ivar": np.full(n, 4, "f4"), "and_mask": mask, "or_mask": mask}
    return table({case(key): values for key, values in columns.items()}, name)


def sdss_lite(folder: Path, more: float = 0.0) -> None:
    row = {
        "SPECOBJID": np.array(["   4115164797179547648"]), "PLATE": np.array([3655], "i4"), "MJD": np.array([55240], "i4"),
        "FIBERID": np.array([2], "i4"), "PLUG_RA": np.array([112.5]), "PLUG_DEC": np.array([-3.25]),
        "CLASS": np.array(["QSO"]), "SUBCLASS": np.array(["BROADLINE"]), "Z": np.array([2.5], "f4"),
        "Z_ERR": np.array([1e-3], "f4"), "ZWARNING": np.array([4], "i4"),
    }  # fmt: skip
    hdus = [fits.PrimaryHDU(), coadd(60, str.lower, "COADD", more), table(row, "SPECOBJ")]
    save(folder / "spec-3655-55240-0002.fits", hdus, RA=10.0, DEC=10.0)


def sdss_full(folder: Path, more: float = 0.0) -> None:
    """Two exposures, the second of which lost its red camera; flux 1 and 2 above the coadd's, wavelengths of b falling."""
    sdss_lite(folder, more)
    path = folder / "spec-3655-55240-0002.fits"
    with fits.open(path, memmap=False) as hdus:
        for camera, number, above in (("B1", 118, 1), ("B1", 119, 2), ("R1", 118, 1)):
            start, n = (3.58, 60) if camera == "B1" else (3.76, 50)
            columns = {"flux": flux(n, more) + above, "loglam": (start + 0.9e-4 * np.arange(n)).astype("f4"),
                       "ivar": np.full(n, 2, "f4"), "mask": bit(n, 1 << 25)}  # fmt: skip
            columns = {k: v[:: -1 if camera == "B1" else 1] for k, v in columns.items()}
            hdu = table(columns, f"{camera}-{number:08d}-00000120-00000121")
            hdu.header.update({"TAI-BEG": 86400 * 55240.25, "TAI-END": 86400 * 55240.25 + 900, "EXPTIME": 900.0})
            hdus.append(hdu)
        hdus.writeto(path, overwrite=True)


def sdss_bare(folder: Path, more: float = 0.0) -> None:
    """Upper case, no HDU names, no catalogue row: the header identifies the object."""
    save(folder / "x.fits", [fits.PrimaryHDU(), coadd(60, str.upper, "", more)],
         PLATEID=266, MJD=51602, FIBERID=13, PLUG_RA=146.9, PLUG_DEC=-1.0)  # fmt: skip


def desi(folder: Path, kind: str, targets: list[int], shares: np.ndarray | float = 0.0, **more: np.ndarray) -> None:
    """shares: by which the flux of each row is larger; more: columns of the fibermap. Each target has one position."""
    n, rows = 50, len(targets)
    first = [targets.index(target) for target in targets]
    fibermap = {"TARGETID": np.array(targets, "i8"), "TARGET_RA": np.linspace(10, 11, rows)[first],
                "TARGET_DEC": np.linspace(-1, 1, rows)[first], **more}  # fmt: skip
    hdus = [fits.PrimaryHDU(), table(fibermap, "FIBERMAP")]
    for arm, start in (("B", 3600.0), ("R", 5760.0), ("Z", 7520.0)):
        spectra = np.array([flux(n, share) for share in np.broadcast_to(shares, rows)])
        ivar = np.full((rows, n), 4, "f4")
        if arm == "B":
            ivar[1] = 0  # the second object has no blue arm
        mask = np.array([bit(n, 1)] * rows)
        hdus.append(fits.ImageHDU(start + 0.8 * np.arange(n), name=f"{arm}_WAVELENGTH"))
        hdus += [fits.ImageHDU(x, name=f"{arm}_{part}") for x, part in ((spectra, "FLUX"), (ivar, "IVAR"), (mask, "MASK"))]
    fits.HDUList(hdus).writeto(folder / f"{kind}-0-1-thru2.fits", checksum=True)


def desi_coadd(folder: Path) -> None:
    desi(folder, "coadd", [39633345008634465, 7, 8], OBJTYPE=np.array(["TGT", "TGT", "SKY"]))
    redshifts = {
        "TARGETID": np.array([7, 39633345008634465], "i8"), "Z": np.array([0.5, 1.5]), "ZERR": np.array([1e-4, 2e-4]),
        "ZWARN": np.array([0, 4], "i8"), "SPECTYPE": np.array(["STAR", "QSO"]), "SUBTYPE": np.array(["M", ""]),
    }  # fmt: skip
    fits.HDUList([fits.PrimaryHDU(), table(redshifts, "REDSHIFTS")]).writeto(folder / "redrock-0-1-thru2.fits")


def desi_spectra(folder: Path, **more: np.ndarray) -> None:
    """Object 5 in two exposures, 6 and 7 in one."""
    exposures = {"EXPID": np.array([101, 101, 102, 101], "i4"), "NIGHT": np.full(4, 20210419, "i4"),
                 "MJD": np.array([59000.25, 59000.25, 59001.5, 59000.25])}  # fmt: skip
    desi(folder, "spectra", [5, 6, 5, 7], **exposures, **more)


STAR = {"OBJID": "2M00452143+1634446", "RA": 11.25, "DEC": 16.5, "SNR": 79.0, "NVISITS": 3, "VHELIO": 6.7, "STARFLAG": 4}
VISITS = {
    "SFILE1": "apVisit-r6-6561-56587-031.fits", "JD1": 2456587.75, "VHELIO1": 7.25, "SNRVIS1": 40.0, "FIBER1": 31,
    "SFILE2": "apVisit-r6-6561-56607-125.fits", "JD2": 2456607.75, "VHELIO2": 6.5, "SNRVIS2": 39.0, "FIBER2": 125,
}  # fmt: skip
CHIP = 320  # the first pixel of the blue chip here


def apogee_grid(more: float) -> tuple[np.ndarray, np.ndarray]:
    """Flux and error (8575,) with the chips' gaps as the survey writes them, and nothing good before CHIP."""
    spectrum, error = flux(8575, more), np.full(8575, 0.5, "f4")
    for gap in (slice(0, CHIP), slice(3300, 3550), slice(6120, 6300), slice(8370, None)):
        spectrum[gap], error[gap] = 0, 1e10
    spectrum[CHIP : CHIP + 60] = flux(60, more)
    return spectrum, error


def apstar(folder: Path, more: float = 0.0) -> None:
    spectrum, error = apogee_grid(more)
    mask = np.zeros(8575, "i2")
    mask[CHIP + BAD], mask[CHIP + GOOD] = 1 << 14, 1 << 12  # NOT_ENOUGH_PSF is bad, SIG_SKYLINE a warning
    rows = [np.array([x, x, 2 * x, 3 * x]) for x in (spectrum, error)]  # combined twice, and two visits
    rows.append(np.array([mask] * 4))
    hdus = [fits.PrimaryHDU(), *map(fits.ImageHDU, rows)]
    save(folder / "apStar-r6-2M00452143+1634446.fits", hdus, CRVAL1=4.179, CDELT1=6e-6, CRPIX1=1, **STAR, **VISITS)


def aspcapstar(folder: Path, more: float = 0.0) -> None:
    spectrum, error = apogee_grid(more)
    error[CHIP + BAD] = np.nan
    hdus = [fits.PrimaryHDU(), *map(fits.ImageHDU, (spectrum, error, spectrum))]
    hdus.append(table({"APOGEE_ID": np.array(["2M00452143+1634446"])}))
    for hdu in hdus[1:4]:
        hdu.header.update(CRVAL1=4.179, CDELT1=6e-6, CRPIX1=1)
    save(folder / "aspcapStar-r6.fits", hdus, **{card: STAR[card] for card in ("RA", "DEC", "SNR")})


def apvisit(folder: Path, more: float = 0.0) -> None:
    """Red chip first, wavelengths falling."""
    n = 64
    spectrum = np.array([flux(n, more)[::-1]] * 3)
    mask = np.array([bit(n, 1, "i2")[::-1]] * 3)
    wavelength = np.array([start + 0.2 * np.arange(n)[::-1] for start in (16472.0, 15857.0, 15142.0)])
    hdus = [fits.PrimaryHDU(), *map(fits.ImageHDU, (spectrum, np.full((3, n), 0.5, "f4"), mask, wavelength))]
    save(folder / "apVisit-r13-5095-55844-128.fits", hdus, **STAR)


def galah(folder: Path, names: list[str], cards: dict[str, float], more: float) -> None:
    n = 60
    error = 0.5 / flux(n)
    error[BAD] = -0.1
    for ccd, start in zip("1234", (4713.5, 5649.0, 6478.0, 7585.0), strict=True):
        hdus = [fits.PrimaryHDU(flux(n, more))]
        hdus += [fits.ImageHDU(error if x == names[0] else np.ones(n), name=x) for x in sorted(names)]
        save(folder / f"161013005401394{ccd}.fits", hdus, CRVAL1=start, CDELT1=0.05, CRPIX1=1.0, **cards)


def galah_dr3(folder: Path, more: float = 0.0) -> None:
    galah(folder, ["input_sigma", "no_sky_sigma", "normalised spectra"], {"MEANRA": 110.0, "MEANDEC": 7.0}, more)


def galah_six(folder: Path, more: float = 0.0) -> None:
    cards = {"RA_ICRS": 110.5, "DEC_ICRS": 7.5, "MEANRA": 110.0, "MEANDEC": 7.0}
    galah(folder, ["relative_error", "normalized", "sky"], cards, more)


LAMOST = {
    "TELESCOP": "LAMOST", "RA": 158.25, "DEC": 35.5, "CLASS": "STAR", "SUBCLASS": "K5", "Z": -2e-4, "Z_ERR": 2e-5,
    "DESIG": "LAMOST J1", "LMJD": 58575, "PLANID": "HD1", "SPID": 3, "FIBERID": 2, "COEFF0": 3.5682, "COEFF1": 1e-4,
}  # fmt: skip


def lamost_vectors(more: float, n: int = 60) -> list[np.ndarray]:
    wavelength = (10.0 ** (1e-4 * np.arange(35682, 35682 + n))).astype("f4")
    or_mask = np.ones(n, "f4")
    return [flux(n, more), np.full(n, 4, "f4"), wavelength, bit(n, 1, "f4"), or_mask]


def lamost_image(folder: Path, more: float = 0.0) -> None:
    save(
        folder / "spec-58575-HD1_sp03-002.fits",
        [fits.PrimaryHDU(np.array(lamost_vectors(more)))],
        OBSID=740103002,
        SNRG=33.9,
        **LAMOST,
    )


def lamost_dr1(folder: Path, more: float = 0.0) -> None:
    """No OBSID, and the flux over the continuum where later releases have the wavelength."""
    rows = lamost_vectors(more)
    rows[2] = np.ones_like(rows[2])
    save(folder / "spec-58575-HD1_sp03-002.fits", [fits.PrimaryHDU(np.array(rows))], SN_G=33.9, **LAMOST)


def lamost_table(folder: Path, more: float = 0.0) -> None:
    names = ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK")
    hdus = [fits.PrimaryHDU(), table({k: v[None] for k, v in zip(names, lamost_vectors(more), strict=True)}, "COADD")]
    save(folder / "spec-58575-HD1_sp03-002.fits", hdus, OBSID=740103002, SNRG=33.9, **LAMOST)


AIR_GOOD = 4713.5 + 0.05 * GOOD + 1.3186  # air to vacuum at 4715 Å: n - 1 = 2.797e-4 (Ciddor 1996)
APOGEE_GOOD = 10 ** (4.179 + 6e-6 * (CHIP + GOOD))
LAYOUTS = {
    "sdss_lite": Layout("sdss", sdss_lite, ("4115164797179547648",), 10**3.583, FLUX, 4),
    "sdss_full": Layout("sdss", sdss_full, ("4115164797179547648",), 10**3.583, FLUX, 4),
    "sdss_bare": Layout("sdss", sdss_bare, ("0266516020013",), 10**3.583, FLUX, 4),
    "desi_coadd": Layout("desi", desi_coadd, ("39633345008634465", "7", "8"), 3600 + 0.8 * GOOD, FLUX, 4),
    "desi_spectra": Layout("desi", desi_spectra, ("5", "6", "7"), 3600 + 0.8 * GOOD, FLUX, 8),
    "apStar": Layout("apogee", apstar, ("2M00452143+1634446",), APOGEE_GOOD, FLUX, 4),
    "aspcapStar": Layout("apogee", aspcapstar, ("2M00452143+1634446",), APOGEE_GOOD, FLUX, 4),
    "apVisit": Layout("apogee", apvisit, ("2M00452143+1634446",), 15142 + 0.2 * GOOD, FLUX, 4),
    "galah_dr3": Layout("galah", galah_dr3, ("161013005401394",), AIR_GOOD, FLUX, 4),
    "galah_six": Layout("galah", galah_six, ("161013005401394",), AIR_GOOD, FLUX, 4),
    "lamost_image": Layout("lamost", lamost_image, ("740103002",), 10**3.5712, FLUX, 4),
    "lamost_dr1": Layout("lamost", lamost_dr1, ("58575-HD1_sp03-002",), 10**3.5712, FLUX, 4),
    "lamost_table": Layout("lamost", lamost_table, ("740103002",), 10**3.5712, FLUX, 4),
}
