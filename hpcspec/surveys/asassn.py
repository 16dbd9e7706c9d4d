"""ASAS-SN light curves, one text file an object (a table of pyasassn may hold several), gzipped or not, in four layouts
known by their header:

- Sky Patrol 1 CSV: HJD, UT Date, Camera, FWHM, Limit, mag, mag_err, flux(mJy), flux_err, Filter.
- Sky Patrol 2 CSV: JD, Flux, Flux Error, Mag, Mag Error, Limit, FWHM, Filter, Quality, Camera, below comments with the
  identifiers of the star in other catalogues.
- pyasassn CSV: jd, flux, flux_err, mag, mag_err, limit, fwhm, cam, asas_sn_id, and more in later versions, below one
  comment with the star's row of the input catalogue as JSON, where that was written.
- The catalogue of variable stars' `.dat`: HJD, MAG, MAG_ERR, FLUX, FLUX_ERR, CAMERA …, blanks or tabs between; the header
  may be a comment or absent.

A catalogue of variable stars (a CSV with a column asassn_name, id or the like, and period, amplitude or type) in the same
folder, or in the one above, gives classes, periods and positions.

Bands are V and g, by the filter's column, else by the camera (ba to bh saw V, all others g), else V, the catalogue's band.
Values are magnitudes. An epoch without a measurement, with ivar 0, is: an upper limit (">15.3", or an error of 99.99), no
magnitude (99.99), and what the survey's own quality flag calls bad ("B"). Dates are HJD or JD, UTC. The identifier is asas_sn_id
(Sky Patrol ID) or, in layouts without it, the file's name. The position is the JSON's, the catalogue's or, in names such as
ASASSN-VJ181654.06-202117.6, the name's; else there is none.
Source: Kochanek et al. (2017), PASP 129, 104502; Jayasinghe et al. (2018), MNRAS 477, 3145; Hart et al. (2023),
arXiv:2304.03791.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpcspec.surveys.base import FAULTS, Quarantined, Source, about, guarded, reason_of
from hpcspec.surveys.companions import CLASS_NAMES, IDENTIFIERS, Catalogue, catalogue, described, place, sources
from hpcspec.surveys.observation import Observation, make_curve
from hpcspec.surveys.tables import is_headed, numbers, runs, stem, texts, unpacked, whole

LABELS = frozenset({"class"})
NAMES = re.compile(r"\.(csv|dat)(\.gz)?$", re.IGNORECASE)
HEADLESS = ("HJD", "MAG", "MAG_ERR", "FLUX", "FLUX_ERR")
ROLES = {
    "time": ("hjd", "jd"), "mag": ("mag",), "error": ("mag_err", "mag error"), "camera": ("camera", "cam"),
    "filter": ("filter", "phot_filter"), "quality": ("quality",), "object": ("asas_sn_id",),
}  # fmt: skip
COMMENTS = {"ATLAS-REFCAT2": "refcat_id", "Gaia DR2": "gaia_id", "TESS Input Catalog (TIC)": "tic_id"}
OWN_ID = "ASAS-SN SkyPatrol ID"
FILE_PARTS = re.compile(r"^light_curve_|[-_]light[-_]?curves?$")
J_NAME = re.compile(r"J(\d\d)(\d\d)(\d\d(?:\.\d+)?)([+-])(\d\d)(\d\d)(\d\d(?:\.\d+)?)")
NO_VALUE = 99.0  # magnitudes and errors from here on say that there is none
V_CAMERAS = "^b[a-h]$"


def _curve_header(names: Sequence[str]) -> bool:
    return all(not set(ROLES[role]).isdisjoint(names) for role in ("time", "mag", "error"))


def _catalogue_header(names: Sequence[str]) -> bool:
    told = {"period", "amplitude", "mean_vmag", *CLASS_NAMES}
    return not _curve_header(names) and not set(IDENTIFIERS).isdisjoint(names) and not told.isdisjoint(names)


def discover(folder: Path) -> list[Source]:
    """One source per light-curve file, with the catalogues that belong to it. Raises UserError if there is none."""
    return sources(folder, NAMES, "ASAS-SN light curves (*.csv or *.dat)", lambda path: is_headed(path, _catalogue_header))


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The objects of a file, each with a light curve for each band that it has rows of."""
    path, *tables = source.paths
    named = FILE_PARTS.sub("", stem(path))
    try:
        rows = catalogue(tables, _catalogue_header, IDENTIFIERS)
        with unpacked(path) as file:
            head, table, skipped = whole(file, _curve_header, "an ASAS-SN light curve", HEADLESS)
        cells = _comments(head.comments)
        lower = {name.lower(): name for name in head.columns}
        columns = {role: table[lower[n]] for role, names in ROLES.items() for n in names if n in lower}
        scale = "hjd_utc" if "hjd" in lower else "jd_utc"
        written = str(cells.pop("asas_sn_id", named))
        objects = texts(columns["object"]) if "object" in columns else pa.array([written] * len(table), pa.string())
        codes = pc.dictionary_encode(objects)
        keys = codes.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    except FAULTS as error:
        yield Quarantined(str(path), named, reason_of(error))
        return
    if not len(table):
        yield Quarantined(str(path), written, "no epoch")
    if skipped:
        cells["rows_skipped"] = len(skipped)
    order, bounds = runs(keys)
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        which = order[start:stop]
        object_id = codes.dictionary[keys[which[0]]].as_py() if keys[which[0]] >= 0 else ""
        own = {role: column.take(pa.array(which)) for role, column in columns.items()}
        about_it = cells if len(bounds) == 2 else {}
        yield from guarded(path, object_id, partial(_object, object_id, named, own, about_it, scale, rows))


def _comments(lines: Sequence[str]) -> dict[str, Any]:
    """What the lines above the header say of the star: "name: value" lines, or one of JSON."""
    said: dict[str, Any] = {}
    for line in lines:
        if line.startswith(('"', "{")):
            try:
                # identifiers have more digits than a float, and JSON's integers keep them
                said |= {k: str(v) if k.endswith("_id") else v for k, v in json.loads("{" + line.strip("{}") + "}").items()}
            except ValueError:
                continue
        elif match := re.fullmatch(r"([^:]+):\s+(\S.*)", line):
            name = match[1].strip()
            slug = re.sub(r"\W+", "_", name.lower()).strip("_")
            said["asas_sn_id" if name == OWN_ID else COMMENTS.get(name, slug)] = match[2].strip()
    return said


def _object(
    object_id: str, named: str, columns: Mapping[str, pa.ChunkedArray], cells: Mapping[str, Any], scale: str, rows: Catalogue
) -> Observation:
    with about(object_id):
        time, mag, error = (numbers(columns[role]) for role in ("time", "mag", "error"))
        bad = ~(mag < NO_VALUE) | ~(error < NO_VALUE)
        if "quality" in columns:
            bad |= _is(columns["quality"], "^B$")
        bands = _bands(columns, len(time))
        mag = np.where(mag < NO_VALUE, mag, np.nan)
        curves = tuple(
            make_curve(str(b), time[bands == b], mag[bands == b], error[bands == b], bad[bands == b], scale=scale)
            for b in np.unique(bands)
        )
        row = {**cells, **rows.row(object_id, named, str(cells.get("name", "")))}
        scalars, meta = described(row)
        ra, dec = place(row)
        if np.isnan(ra) and (match := J_NAME.search(named)):
            h, hm, hs, sign, d, dm, ds = match.groups()
            ra = 15 * (int(h) + int(hm) / 60 + float(hs) / 3600)
            dec = float(f"{sign}1") * (int(d) + int(dm) / 60 + float(ds) / 3600)
    meta["position"] = "none" if np.isnan(ra) else "object"
    return Observation(object_id, "asassn", ra, dec, meta=meta, curves=curves, scalars=scalars)


def _is(column: pa.ChunkedArray, pattern: str) -> np.ndarray:
    """Where the trimmed text of a column matches a pattern, bool (n,)."""
    return np.asarray(pc.match_substring_regex(texts(column).fill_null(""), pattern))


def _bands(columns: Mapping[str, pa.ChunkedArray], length: int) -> np.ndarray:
    """The band of each epoch (n,): the filter's name, by the camera where that is empty, V where both are absent."""
    bands = np.full(length, "V", object)
    if "camera" in columns:
        bands[:] = np.where(_is(columns["camera"], V_CAMERAS), "V", "g")
    if "filter" in columns:
        named = texts(columns["filter"]).fill_null("").to_numpy(zero_copy_only=False)
        bands = np.where(named == "", bands, named)
    return bands
