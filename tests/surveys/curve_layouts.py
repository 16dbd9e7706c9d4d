"""Small light-curve files in every layout the readers know, with known content.

Each writer puts the objects of a layout into a folder. The first object has, in its first band, N good epochs at times
ZERO + day(i), in order, and possibly others that must not be used. Some take `more`, by which their magnitudes are fainter.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Table

N = 12
STARS = ("ASASSN-VJ181654.06-202117.6", "ASASSN-VJ190000.00+100000.0")


@dataclass(frozen=True)
class Layout:
    """One layout: its survey, its writer, the identifiers; of the first object the bands, the time of the first epoch, the
    scale, whether it has a position, and the class."""

    survey: str
    write: Callable[..., None]
    object_ids: tuple[str, ...]
    bands: tuple[str, ...]
    start: float
    scale: str
    placed: bool = False
    label: str = ""


def day(i: int) -> float:
    return i * 1.25


def mag(i: int, more: float = 0.0) -> float:
    return round(14 + 0.1 * (i % 4) + more, 3)


def lines(path: Path, rows: Iterable[str]) -> None:
    path.write_text("\n".join(rows) + "\n")


PATROL_1 = "HJD,UT Date,Camera,FWHM,Limit,mag,mag_err,flux(mJy),flux_err,Filter"


def patrol_1(folder: Path, more: float = 0.0) -> None:
    """Two bands; an upper limit and an epoch without anything."""
    rows = [f"{2457000 + day(i):.5f},2014-12-{i + 9:02d}.1,be,1.5,16.8,{mag(i, more):.3f},0.020,9.1,0.1,V" for i in range(N)]
    rows += ["2457900.5,2017-05-26.1,bi,1.5,15.3,>15.300,99.990,2.1,1.6,g"]
    rows += [f"2457901.5,2017-05-27.1,bi,1.5,16.9,{14.5 + more:.3f},0.030,6.1,0.2,g"]
    rows += ["2457902.5,2017-05-28.1,bi,1.5,99.990,99.990,99.990,99.990,99.990,g"]
    lines(folder / "light_curve_03ce0bc8-42ef.csv", [PATROL_1, *rows])


def patrol_2(folder: Path, more: float = 0.0) -> None:
    """Comments, blank lines, a bad image and an epoch without an error."""
    rows = [f"{2457000 + day(i):.7f},9.1,0.1,{mag(i, more):.4f},0.0200,16.8,1.5,V,G,ba" for i in reversed(range(N))]
    rows += ["2457800.5,9.1,0.1,11.0,0.02,16.8,1.5,V,B,ba", "2457801.5,9.1,99.99,13.3,99.9900,99.99,1.5,V,G,ba"]
    head = ["# ASAS-SN SkyPatrol ID: 223339338105", "# ATLAS-REFCAT2: 149462658684125462"]
    head += ["# Gaia DR2: 4608321929460721408", "", ""]
    head += ["JD,Flux,Flux Error,Mag,Mag Error,Limit,FWHM,Filter,Quality,Camera"]
    lines(folder / "223339338105-light-curves.csv", head + rows)


def pyasassn(folder: Path, more: float = 0.0) -> None:
    said = '"asas_sn_id":12702,"gaia_id":5211052415435948544,"pstarrs_g_mag":13.135,"name":"VX Men"'
    said += ',"ra_deg":85.5,"dec_deg":-79.25'
    rows = [f"{2457000 + day(i)},9.1,0.1,{mag(i, more)},0.02,16.8,1.5,b{'iFt'[i % 3]},12702" for i in range(N)]
    lines(folder / "vxmen.csv", [f"# {said}", "jd,flux,flux_err,mag,mag_err,limit,fwhm,cam,asas_sn_id", *rows])


def variables(folder: Path, more: float = 0.0) -> None:
    """The catalogue of variable stars beside its light curves, with the header as a comment, or absent."""
    rows = [f"{2457000 + day(i):.5f} {mag(i, more):.3f} 0.020 9.1 0.1 be" for i in range(N)]
    head = ["# ASASSN-V J181654.06-202117.6", "#HJD MAG MAG_ERR FLUX FLUX_ERR CAMERA"]
    lines(folder / f"{STARS[0]}.dat", [*head, *rows])
    lines(folder / f"{STARS[1]}.dat", ["\t".join(row.split()[:5]) for row in rows])
    catalogue = ["asassn_name,raj2000,dej2000,mean_vmag,amplitude,period,variable_type"]
    lines(folder / "variables.csv", [*catalogue, "ASASSN-V J181654.06-202117.6,274.22525,-20.35489,14.15,0.35,1.5,RRAB"])


def asas_rows(more: float = 0.0) -> list[str]:
    return [f"{1868.5 + day(i)},{mag(i, more)},0.04" for i in range(N)]


def asas_tables(folder: Path) -> None:
    lines(folder / "classes.dat", ["filename,class", "215153,Mira", "215181,RR_Lyrae_FM"])
    lines(folder / "more.dat", ["filename,class,meta1,meta2", "215153,Mira,0.25,1e3", "215181,RR_Lyrae_FM,0.5,2"])


def asas_files(folder: Path) -> None:
    asas_tables(folder)
    (folder / "set").mkdir()
    for name in ("215153", "215181"):
        lines(folder / f"set/{name}.dat", asas_rows())


def asas_archive(folder: Path) -> None:
    asas_tables(folder)
    archive(folder / "set.tar.gz", {"set/215153.dat": asas_rows(), "set/215181.dat": asas_rows()})


def archive(path: Path, members: dict[str, Sequence[str]]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, rows in members.items():
            data = ("\n".join(rows) + "\n").encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def cell(values: Iterable[float]) -> str:
    return f'"{[float(v) for v in values]}"'


def eros_row(object_id: str, bands: str = "br", more: float = 0.0) -> str:
    n = range(N)
    columns = ([290.3 + day(i) for i in n], [mag(i, more) for i in n], [0.13] * N, [0.0] * N)
    cells = [cell(column) for column in columns for _ in bands]
    return ",".join([object_id, *cells])


EROS = "," + ",".join(f"{what}_points_{band}" for what in ("time", "light", "error", "bkg") for band in "br")
FEATURES = "Unnamed: 0,patch_id,magnitude_b,magnitude_r,asc_d,asc_m,asc_s,dec_d,dec_m,dec_s,period,type,quality,div_period"


def eros_features(folder: Path, header: str = FEATURES) -> None:
    rows = ["135_9613,135.0,19.1,18.8,5.0,40.0,30.0,-0.0,30.0,36.0,2.0,3.0,1.0,4.0"]
    rows += ["271_4304,271.0,17.6,15.3,5,28,51.5,-69,23,19,280,4,2,2"]
    lines(folder / "things.csv", [header, *rows])


def eros_curves(folder: Path) -> None:
    lines(folder / "lists.csv", [EROS, eros_row("135_9613"), eros_row("271_4304")])


def eros(folder: Path) -> None:
    eros_curves(folder)
    eros_features(folder)


def columns() -> dict[str, list]:
    """Two objects whose rows alternate, the first of two bands; class, ra and dec constant, seeing not."""
    of, time, band = [], [], []
    for i in range(N):
        of += [7, 9]
        time += [58000 + day(i)] * 2
        band += ["g", "g"]
    of += [7]
    time += [58500.5]
    band += ["r"]
    k = range(len(of))
    at = [i // 2 for i in k]
    return {
        "oid": [10**17 + o for o in of], "mjd": time, "magnitude": [mag(i) for i in at], "magerr": [0.1] * len(of),
        "filter": band, "RA": [100.5 if o == 7 else 200.0 for o in of], "Dec": [-10.0] * len(of),
        "type": ["RR" if o == 7 else "EB" for o in of], "seeing": [1 + 0.01 * i for i in k], "period": [0.5] * len(of),
    }  # fmt: skip


def generic_csv(folder: Path) -> None:
    Table(columns()).write(folder / "many.csv", format="ascii.csv")


def generic_ecsv(folder: Path) -> None:
    table = Table(columns())
    table["magnitude"].unit = "mag"
    table.write(folder / "many.ecsv", format="ascii.ecsv")


def generic_fits(folder: Path) -> None:
    table = Table(columns())
    table["coefficients"] = np.zeros((len(table), 3))
    table.write(folder / "many.fits")


def generic_votable(folder: Path) -> None:
    Table(columns()).write(folder / "many.vot", format="votable")


def generic_parquet(folder: Path) -> None:
    table = pa.table(columns())
    pq.write_table(table.set_column(4, "filter", table["filter"].dictionary_encode()), folder / "many.parquet", row_group_size=7)


def generic_one(folder: Path, more: float = 0.0) -> None:
    rows = [f"{2457000 + day(i)} {100 + i + more} 1.5" for i in range(N)]
    lines(folder / "GJ 1.txt", ["# flux of a star, as measured", "bjd_tdb flux(mJy) flux_err", *rows])


ONE, TWO = ("223339338105",), ("100000000000000007", "100000000000000009")
LAYOUTS = {
    "patrol_1": Layout("asassn", patrol_1, ("03ce0bc8-42ef",), ("V", "g"), 2457000, "hjd_utc"),
    "patrol_2": Layout("asassn", patrol_2, ONE, ("V",), 2457000, "jd_utc"),
    "pyasassn": Layout("asassn", pyasassn, ("12702",), ("g",), 2457000, "jd_utc", True),
    "variables": Layout("asassn", variables, STARS, ("V",), 2457000, "hjd_utc", True, "RRAB"),
    "asas_files": Layout("asas", asas_files, ("215153", "215181"), ("V",), 2451868.5, "hjd", False, "Mira"),
    "asas_archive": Layout("asas", asas_archive, ("215153", "215181"), ("V",), 2451868.5, "hjd", False, "Mira"),
    "eros": Layout("eros", eros, ("135_9613", "271_4304"), ("b", "r"), 290.3, "relative", True, "3"),
    "eros_curves": Layout("eros", eros_curves, ("135_9613", "271_4304"), ("b", "r"), 290.3, "relative"),
    "generic_one": Layout("light_curves", generic_one, ("GJ 1",), ("flux",), 2457000, "bjd_tdb"),
} | {
    write.__name__: Layout("light_curves", write, TWO, ("g", "r"), 58000, "mjd", True, "RR")
    for write in (generic_csv, generic_ecsv, generic_fits, generic_votable, generic_parquet)
}
