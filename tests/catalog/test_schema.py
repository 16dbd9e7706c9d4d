"""The schema: order and types of the columns, vocabulary, flags, and the data model page made from it."""

from __future__ import annotations

from html import escape

import astropy.units as u
import pytest
from astropy.io.votable.ucd import parse_ucd

from hpcspec.catalog.datamodel import datamodel_page
from hpcspec.catalog.schema import EMBEDDING, PARAMETERS, RECOMMENDED_CUT, Flag, class_column, columns, embedding_columns, labels
from hpcspec.errors import UserError

ALL = (*columns(("STAR", "RR Lyrae"), (*PARAMETERS, "oddity")), EMBEDDING)


def test_columns_in_order() -> None:
    assert [c.name for c in columns(("STAR", "RR Lyrae"), ("teff", "oddity"))] == [
        "object_id", "survey", "ra", "dec", "_healpix_29", "sn_median", "class", "class_prob", "p_star", "p_rr_lyrae",
        "teff", "teff_err", "teff_err95", "oddity", "oddity_err", "oddity_err95", "anomaly", "flags"]  # fmt: skip
    assert [c.name for c in embedding_columns()] == ["object_id", "survey", "ra", "dec", "_healpix_29", "embedding"]


def test_only_what_may_be_absent_is_nullable() -> None:
    assert [c.name for c in columns(("A", "B"), ("teff",)) if c.nullable] == ["ra", "dec", "teff", "teff_err", "teff_err95"]
    assert [c.name for c in columns((), ()) if c.nullable] == ["ra", "dec", "class_prob"]


def test_labels_come_back() -> None:
    assert labels(columns(("STAR", "teff"), ("teff", "star"))) == (["STAR", "teff"], ["teff", "star"])


@pytest.mark.parametrize("column", ALL, ids=lambda c: c.name)
def test_units_and_ucds_are_of_their_vocabularies(column) -> None:
    assert parse_ucd(column.ucd, check_controlled_vocabulary=True)
    u.Unit(column.unit)
    assert column.description and column.description.isascii() and len(column.name) <= 68


@pytest.mark.parametrize(("classes", "parameters", "said"), [
    (("RR Lyr", "rr-lyr"), (), "p_rr_lyr"), (("STAR",), ("p_star",), "p_star"), ((), ("Flags",), "flags"),
    ((), ("[Fe/H]",), "Fe/H"), (("", "A"), (), "class ''"), (("Étoile",), (), "toile"), ((), ("teff", "teff_err"), "teff_err"),
])  # fmt: skip
def test_names_that_clash_are_refused(classes: tuple[str, ...], parameters: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        columns(classes, parameters)


def test_flags_are_single_bits_with_a_line_each() -> None:
    assert [f.value for f in Flag] == [1 << i for i in range(len(Flag))]
    assert all((f.__doc__ or "").endswith(".") for f in Flag)
    assert Flag.NOT_APPLICABLE not in RECOMMENDED_CUT and Flag.LOW_SN in RECOMMENDED_CUT


def test_datamodel_page_names_every_column_flag_and_file() -> None:
    page = datamodel_page("desi", ALL[:-1], 48)
    for column in ALL:
        assert f"<td>{column.name}</td>" in page and f"<td>{column.ucd}</td>" in page and escape(column.description) in page
    for flag in Flag:
        assert f"<td>{flag.value}</td><td>{flag.name}</td><td>{flag.__doc__}</td>" in page
    assert "float32[48]" in page and "hpcspec-desi-embeddings.parquet" in page
    assert f"(flags &amp; {int(RECOMMENDED_CUT)}) == 0" in page


def test_class_column() -> None:
    assert [class_column(c) for c in ("STAR", "K-giant", "δ Sct")] == ["p_star", "p_k_giant", "p_sct"]
