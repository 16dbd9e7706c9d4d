"""The catalogue's columns and flags: the one source of the writer, the data model page and the validator.

UCDs follow the IVOA's controlled vocabulary UCD1+; positions are ICRS; `_healpix_29` is nested, of order 29, and NOWHERE of an
object whose position nobody knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

import pyarrow as pa

from hpcspec.errors import UserError

_ARROW = {"U": pa.string(), "f4": pa.float32(), "f8": pa.float64(), "i4": pa.int32(), "i8": pa.int64()}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


NOWHERE = -1


class Flag(IntFlag):
    """Bits of the column `flags`; `__doc__` of a member says in one line what it means."""

    def __new__(cls, value: int, doc: str = "") -> Flag:
        member = int.__new__(cls, value)
        member._value_, member.__doc__ = value, doc
        return member

    LOW_SN = 1, "The median signal to noise per pixel is below the limit of the run."
    FEW_PIXELS = 2, "Fewer valid pixels, or without spectra fewer epochs of light curves, than the run asks for."
    OUT_OF_TRAINING_RANGE = 4, "The summary by the model is farther from the training set than nearly all training objects are."
    CLASS_AMBIGUOUS = 8, "No class is clearly the most probable."
    EXTRAPOLATED_LABEL = 16, "At least one parameter lies outside the range of the labels it was learned from."
    NOT_APPLICABLE = 32, "At least one parameter has no meaning for this class of object and is NaN."
    APPROXIMATE_POSITION = 64, "The survey gives the centre of the field, not the position of the object."
    NO_POSITION = 128, "The survey gives no position: ra and dec are NaN, and the object is not in hats/."


RECOMMENDED_CUT = Flag.LOW_SN | Flag.FEW_PIXELS | Flag.OUT_OF_TRAINING_RANGE | Flag.CLASS_AMBIGUOUS | Flag.EXTRAPOLATED_LABEL
MAY_LEAVE_RANGE = Flag.OUT_OF_TRAINING_RANGE | Flag.EXTRAPOLATED_LABEL


@dataclass(frozen=True)
class Column:
    """One column: numpy type code ("U" is text), FITS unit, UCD, description, allowed range (lo, hi) and whether NaN may stand.

    of: the class label or parameter that the column is about; "" for the columns every catalogue has.
    """

    name: str
    dtype: str
    unit: str
    ucd: str
    description: str
    range: tuple[float, float] | None = None
    nullable: bool = False
    of: str = ""

    @property
    def arrow(self) -> pa.DataType:
        """The column's type in Arrow and Parquet."""
        return _ARROW[self.dtype]


_POSITION = (
    Column("object_id", "U", "", "meta.id;meta.main", "Identifier of the object, as its survey writes it"),
    Column("survey", "U", "", "meta.dataset", "Survey that observed the object"),
    Column("ra", "f8", "deg", "pos.eq.ra;meta.main", "Right ascension, ICRS", (0.0, 360.0), nullable=True),
    Column("dec", "f8", "deg", "pos.eq.dec;meta.main", "Declination, ICRS", (-90.0, 90.0), nullable=True),
    Column("_healpix_29", "i8", "", "pos.healpix", "HEALPix index of order 29, nested, of ra and dec; -1 without them",
           (NOWHERE, 12 * 4**29 - 1)),
)
EMBEDDING = Column("embedding", "f4", "", "stat.param",
                   "The model's summary of the object: the nearer two of them by cosine, the more alike the objects")  # fmt: skip
_SN = Column("sn_median", "f4", "", "stat.snr;stat.median", "Median signal to noise per valid native pixel", (-1e3, 1e5))
_LAST = (
    Column("anomaly", "f4", "", "stat.value", "How unusual the object is among those of the run; larger is stranger"),
    Column("flags", "i4", "", "meta.code.qual", "Bits of caution; 0 is good", (0, sum(f.value for f in Flag))),
)
# Ranges are what nature and the definition of a parameter allow, not where a model is at its best.
PARAMETERS: dict[str, tuple[str, str, str, tuple[float, float]]] = {
    "teff": ("K", "phys.temperature.effective", "Effective temperature", (500.0, 3e5)),
    "logg": ("dex(cm s-2)", "phys.gravity", "Surface gravity, decimal logarithm", (-3.0, 11.0)),
    "fe_h": ("dex", "phys.abund.Fe", "Iron abundance [Fe/H]", (-10.0, 3.0)),
    "m_h": ("dex", "phys.abund.Z", "Metallicity [M/H]", (-10.0, 3.0)),
    "alpha_m": ("dex", "phys.abund", "Abundance of the alpha elements relative to metals [alpha/M]", (-3.0, 3.0)),
    "alpha_fe": ("dex", "phys.abund", "Abundance of the alpha elements relative to iron [alpha/Fe]", (-3.0, 3.0)),
    "vmic": ("km s-1", "phys.veloc.microTurb", "Microturbulent velocity", (0.0, 100.0)),
    "vsini": ("km s-1", "phys.veloc.rotat", "Projected rotation velocity", (0.0, 1000.0)),
    "rv": ("km s-1", "spect.dopplerVeloc", "Radial velocity, heliocentric", (-3000.0, 3000.0)),
    "z": ("", "src.redshift", "Redshift", (-0.05, 20.0)),
    "mass": ("solMass", "phys.mass", "Mass", (0.0, 500.0)),
    "radius": ("solRad", "phys.size.radius", "Radius", (0.0, 5000.0)),
    "age": ("Gyr", "time.age", "Age", (0.0, 20.0)),
    "parallax": ("mas", "pos.parallax", "Parallax", (-100.0, 1000.0)),
}


def class_column(label: str) -> str:
    """The column that holds the probability of a class: `p_` and the label in lower case, other characters as `_`."""
    return "p_" + re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")


def columns(classes: Sequence[str], parameters: Sequence[str]) -> tuple[Column, ...]:
    """The columns of `hpcspec-<survey>.fits`, in order, of a catalogue with these classes and parameters.

    A parameter that is not in `PARAMETERS` is allowed and gets a generic description, without unit and range.
    Raises UserError for a class or parameter that can't name a column, or that names one twice.
    """
    for label in classes:
        if not label.isascii() or not label.strip() or label != label.strip() or class_column(label) == "p_":
            raise UserError(f"class {label!r}: give a name of ASCII letters and digits, without blanks around it")
    for name in parameters:
        if not _NAME.fullmatch(name):
            raise UserError(f"parameter {name!r}: a column name starts with a letter and has letters, digits and _ only")
    ucd, limits = "stat.probability;src.class", (0.0, 1.0)
    found = [*_POSITION, _SN]
    said = {0: "Empty: no classes were adapted", 1: "The only class among the labels: nothing was classified"}
    found.append(Column("class", "U", "", "src.class", said.get(len(classes), "Most probable class")))
    chance = "Probability of the class" + (", 1 because the labels have no other" if len(classes) == 1 else "")
    found.append(Column("class_prob", "f4", "", ucd, chance, limits, nullable=not classes))
    found += [Column(class_column(c), "f4", "", ucd, f"Probability of class {c}", limits, of=c) for c in classes]
    for name in parameters:
        unit, ucd, text, span = PARAMETERS.get(name, ("", "stat.value", f"Parameter {name}, in the unit of its labels", None))
        found.append(Column(name, "f4", unit, ucd, text, span, True, name))
        for error, share in (("err", 68), ("err95", 95)):
            text = f"Half width of the interval about {name} that holds {share} % of the true values"
            of_error = unit.replace("dex(cm s-2)", "dex")
            found.append(Column(f"{name}_{error}", "f4", of_error, f"stat.error;{ucd}", text, None, True, name))
    found += _LAST
    names = [c.name.lower() for c in found]  # FITS does not tell upper from lower case
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"two columns are called {', '.join(twice)}: rename the class or parameter that clashes")
    return tuple(found)


def embedding_columns() -> tuple[Column, ...]:
    """The columns of `hpcspec-<survey>-embeddings.parquet`."""
    return (*_POSITION, EMBEDDING)


def labels(columns: Sequence[Column]) -> tuple[list[str], list[str]]:
    """The classes and parameters from which `columns` made these columns."""
    classes = [c.of for c in columns if c.ucd == "stat.probability;src.class" and c.of]
    return classes, [c.name for c in columns if c.name == c.of]


def arrow_schema(columns: Sequence[Column], dimension: int = 0) -> pa.Schema:
    """An Arrow schema with unit, UCD and description on every field; `embedding` is a fixed-size list of `dimension`."""
    fields = []
    for c in columns:
        kind = pa.list_(pa.float32(), dimension) if c is EMBEDDING else c.arrow
        fields.append(pa.field(c.name, kind, False, {"unit": c.unit, "ucd": c.ucd, "description": c.description}))
    return pa.schema(fields)
