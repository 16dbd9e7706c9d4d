"""Every layout of every reader, and what is done to its files."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from tests.damages import in_columns, in_fits, in_text
from tests.damages.copies import (
    Kind,
    asas,
    asas_archive,
    asas_tar,
    beside,
    desi,
    eros,
    fits_table,
    gaia,
    gaia_sampled,
    galah,
    generic_plain,
    generic_table,
    hats,
    hdf5,
    lines,
    many,
    packed,
    parquet,
    photometry,
    relabelled,
    variables,
)
from tests.damages.damage import BYTES, NAMES, PATHS, TRUNCATE, Damage
from tests.surveys import curve_layouts, gaia_layouts, layouts, mmu_layouts

L, C, G = layouts, curve_layouts, gaia_layouts
SDSS = relabelled(L.sdss_lite, "spec-3655-55240-{k:04d}.fits", ("4115164797179547648", "41151647971795476{k:02d}"))
FULL = relabelled(L.sdss_full, "spec-3655-55240-{k:04d}.fits", ("4115164797179547648", "41151647971795476{k:02d}"))
BARE = relabelled(L.sdss_bare, "x{k}.fits", ("FIBERID =                   13", "FIBERID = {k:20d}"))
STAR = ("2M00452143+1634446", "2M00452143+16344{k:02d}")
FIBER = ("FIBERID =                    2", "FIBERID = {k:20d}")
IMAGE = relabelled(L.lamost_image, "spec-{k}.fits", ("740103002", "7401030{k:02d}"))
PATROL = relabelled(C.patrol_1, "light_curve_{k:04d}.csv")
KINDS: dict[str, Kind] = {
    "sdss_lite": Kind("sdss", SDSS, "fits"),
    "sdss_full": Kind("sdss", FULL, "fits", epochs=True),
    "sdss_bare": Kind("sdss", BARE, "fits"),
    "sdss_lite.gz": Kind("sdss", packed(SDSS), "packed", checked=True),
    "desi_coadd": Kind("desi", desi("coadd"), "fits"),
    "desi_spectra": Kind("desi", desi("spectra"), "fits"),
    "desi_exposures": Kind("desi", desi("spectra"), "fits", epochs=True),
    "desi_coadd.gz": Kind("desi", packed(desi("coadd")), "packed", checked=True),
    "apStar": Kind("apogee", relabelled(L.apstar, "apStar-{k}.fits", STAR), "images", epochs=True),
    "aspcapStar": Kind("apogee", relabelled(L.aspcapstar, "aspcapStar-{k}.fits", STAR), "fits"),
    "apVisit": Kind("apogee", relabelled(L.apvisit, "apVisit-r13-5095-55844-{k:03d}.fits", STAR), "images"),
    "galah_dr3": Kind("galah", galah(L.galah_dr3), "images"),
    "galah_six": Kind("galah", galah(L.galah_six), "images"),
    "lamost_image": Kind("lamost", IMAGE, "images"),
    "lamost_dr1": Kind("lamost", relabelled(L.lamost_dr1, "spec-{k}.fits", FIBER), "images"),
    "lamost_table": Kind("lamost", relabelled(L.lamost_table, "spec-{k}.fits", ("740103002", "7401030{k:02d}")), "fits"),
    "lamost_image.gz": Kind("lamost", packed(IMAGE), "packed", checked=True),
    "lamost_image.bz2": Kind("lamost", packed(IMAGE, ".bz2"), "packed", checked=True),
    "gaia_csv": Kind("gaia", gaia(G.to_csv, "XP_CONTINUOUS_RAW-{k}.csv"), "text", by_line=True),
    "gaia_bulk": Kind("gaia", gaia(G.to_bulk, "XpContinuousMeanSpectrum_{k}.csv.gz"), "packed", checked=True),
    "gaia_ecsv": Kind("gaia", gaia(G.to_spaced_ecsv, "XP_CONTINUOUS_RAW-{k}.ecsv"), "text", by_line=True),
    "gaia_fits": Kind("gaia", gaia(G.to_fits, "XP-{k}.fits"), "fits"),
    "gaia_columns": Kind("gaia", gaia(G.to_columns, "XP-{k}.fits"), "fits"),
    "gaia_votable": Kind("gaia", gaia(G.to_votable, "XP-{k}.xml"), "votable"),
    "gaia_parquet": Kind("gaia", gaia(G.to_parquet, "xp-{k}.parquet"), "parquet"),
    "gaia_sampled": Kind("gaia", gaia_sampled, "text", by_line=True),
    "patrol_1": Kind("asassn", PATROL, "text"),
    "patrol_1.gz": Kind("asassn", packed(PATROL), "packed", checked=True),
    "patrol_2": Kind("asassn", relabelled(C.patrol_2, "{k:04d}-light-curves.csv", ("223339338105", "2233393381{k:02d}")), "text"),
    "pyasassn": Kind("asassn", relabelled(C.pyasassn, "star{k}.csv", ("12702", "120{k:02d}")), "text"),
    "variables": Kind("asassn", relabelled(variables, "ASASSN-VJ1816{k:02d}.06-202117.6.dat"), "text"),
    "asas": Kind("asas", relabelled(asas, "{k:06d}.dat"), "text"),
    "asas_archive": Kind("asas", asas_archive, "packed", checked=True),
    "asas_tar": Kind("asas", asas_tar, "tar"),
    "eros": Kind("eros", eros, "text", by_line=True),
    "many_csv": Kind("light_curves", many("csv"), "text", by_line=True),
    "many_ecsv": Kind("light_curves", many("ecsv"), "text", by_line=True),
    "many_fits": Kind("light_curves", many("fits"), "fits"),
    "many_votable": Kind("light_curves", many("vot"), "votable"),
    "many_parquet": Kind("light_curves", many("parquet"), "parquet"),
    "one": Kind("light_curves", relabelled(C.generic_one, "GJ {k}.txt"), "text"),
} | {
    **{f"hdf5_{s}": Kind(s, hdf5(s), "hdf5") for s in mmu_layouts.TABLES},
    "hdf5_chunked": Kind("sdss", hdf5("sdss", chunks=True, compression="gzip", fletcher32=True), "hdf5"),
    **{f"hats_{s}": Kind(s, hats(s), "parquet") for s in mmu_layouts.TABLES},
    "hats_checked": Kind("sdss", hats("sdss", "structs", write_page_checksum=True, row_group_size=2), "parquet"),
    "hdf5_in_place": Kind("sdss", hdf5("sdss"), "hdf5", in_place=True),
    "hats_in_place": Kind("sdss", hats("sdss"), "parquet", in_place=True),
    "parquet": Kind("desi", parquet("desi"), "parquet"),
}  # fmt: skip
STELLAR = {"TEFF": lambda k: [5000.0, 4000.0 + k], "LOGG": lambda k: [4.5, 3.0], "FE_H": lambda k: [0.0, -1.0]}
KINDS |= {
    name: Kind(survey, write, form, companion=True)
    for name, survey, form, write in (
        ("redrock", "desi", "fits", desi("coadd", companion=True)),
        ("zall", "desi", "fits", beside(desi("spectra"), "zall-{k}.fits", fits_table(
            TARGETID=lambda k: [1000 * k + 2, 1000 * k + 1], Z=lambda k: [0.5, 1.5], ZERR=lambda k: [1e-4, 2e-4],
            ZWARN=lambda k: [0, 4], SPECTYPE=lambda k: ["STAR", "QSO"], SURVEY=lambda k: ["main", "sv3"]))),
        ("allStar", "apogee", "fits", beside(KINDS["apStar"].write, "allStar-{k}.fits", fits_table(
            APOGEE_ID=lambda k: ["2M99999999+9999999", STAR[1].format(k=k)], TELESCOPE=lambda k: ["apo25m"] * 2, **STELLAR))),
        ("galah_main", "galah", "fits", beside(KINDS["galah_dr3"].write, "GALAH_DR3_main_{k}.fits", fits_table(
            SOBJECT_ID=lambda k: [1, 161013005401300 + k], RA=lambda k: [1.0, 2.0], DEC=lambda k: [3.0, 4.0], **STELLAR))),
        ("gaia_source.csv", "gaia", "text", beside(KINDS["gaia_csv"].write, "gaia_source.csv", photometry(G.to_csv))),
        ("gaia_source.fits", "gaia", "fits", beside(KINDS["gaia_parquet"].write, "gaia_source.fits", photometry(G.to_fits))),
        ("variables.csv", "asassn", "text", beside(KINDS["variables"].write, "variables.csv", lines(
            "asassn_name,raj2000,dej2000,mean_vmag,amplitude,period,variable_type",
            "ASASSN-V J181699.06-202117.6,1,2,14.15,0.35,1.5,M", "ASASSN-V J1816{k:02d}.06-202117.6,274.2,-20.3,14,0.3,1,RRAB"))),
        ("classes.dat", "asas", "text", beside(KINDS["asas"].write, "classes.dat", lines(
            "filename,class,period", "999999,Mira,300.5", "{k:06d},RR_Lyrae_FM,0.5"))),
        ("things.csv", "eros", "text", beside(eros, "things.csv", lines(C.FEATURES, *(
            f"{{k}}_{i},135.0,19.1,18.8,5.0,40.0,30.0,-0.0,30.0,36.0,2.0,3.0,1.0,4.0" for i in range(3))))),
    )
}  # fmt: skip
if importlib.util.find_spec("specutils"):
    KINDS |= {
        "generic_fits": Kind("generic", generic_plain, "images"),
        "generic_table": Kind("generic", generic_table("fits"), "fits"),
        "generic_ecsv": Kind("generic", generic_table("ecsv"), "text"),
    }

OWN = {"images": in_fits.IMAGES, "fits": in_fits.TABLES, "text": in_text.LINES, "votable": in_text.VOTABLE, "tar": in_text.TAR,
       "hdf5": in_columns.HDF5, "parquet": in_columns.PARQUET, "packed": []}  # fmt: skip
# Layouts whose files become something else too, one for each reader.
MOVED = {"sdss_lite", "desi_coadd", "apStar", "galah_dr3", "lamost_image", "gaia_csv", "patrol_1", "asas", "eros", "many_csv",
         "generic_table", "hdf5_sdss", "hats_sdss"} & KINDS.keys()  # fmt: skip


def damages(name: str) -> list[Damage]:
    """Everything that is done to files of one layout."""
    kind = KINDS[name]
    paths = PATHS if kind.survey != "galah" else [replace(d, loose=True) for d in PATHS]  # where one of its four files is gone
    if kind.form == "parquet" and name.startswith("hats"):  # a file of another name is none of the catalogue's
        paths = [d for d in paths if d not in NAMES]
    every = [*BYTES, *OWN[kind.form], *(paths if name in MOVED else ())]
    if kind.checked:
        return [replace(d, loose=d.name in ("noise after", "twice")) for d in every]
    return [replace(d, loose=d.loose or (kind.form == "text" and d.harm is TRUNCATE)) for d in every]
