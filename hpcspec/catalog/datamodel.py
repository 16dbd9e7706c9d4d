"""The data model page: what every file, column and flag of the release means, made from the schema."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from hpcspec.catalog.schema import MAY_LEAVE_RANGE, RECOMMENDED_CUT, Column, Flag, embedding_columns

STYLE = """body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left;vertical-align:top}
th{background:#eee}code{background:#f4f4f4}img{max-width:100%}"""
_TYPES = {"U": "text", "f4": "float32", "f8": "float64", "i4": "int32", "i8": "int64"}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; every cell is escaped."""
    lines = ["<table>", "<tr>" + "".join(f"<th>{escape(h)}</th>" for h in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML page that needs no other file."""
    head = '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style></head><body>",
                      f"<h1>{escape(title)}</h1>", *body, "</body></html>", ""])  # fmt: skip


def _column_table(columns: Sequence[Column], dimension: int) -> str:
    def kind(c: Column) -> str:
        return f"float32[{dimension}]" if c.name == "embedding" else _TYPES[c.dtype]

    def limits(c: Column) -> str:
        return f"{c.range[0]:g} … {c.range[1]:g}" if c.range else ""

    rows = [(c.name, kind(c), c.unit, c.ucd, limits(c), "yes" if c.nullable else "no", c.description) for c in columns]
    return table(("column", "type", "unit", "UCD", "range", "may be NaN", "description"), rows)


def datamodel_page(survey: str, columns: Sequence[Column], dimension: int) -> str:
    """The page, as HTML, of a release of `survey` with these columns and embeddings of this many dimensions."""
    files = [
        (f"hpcspec-{survey}.fits", "The catalogue, one row per object, in the FITS binary table CATALOG"),
        (f"hpcspec-{survey}-embeddings.parquet", "The embedding of each object, the same rows in the same order"),
        ("hats/", "The catalogue again, as HATS: Parquet by HEALPix pixel; objects without a position are not in it"),
        ("quarantine.csv", "What could not be used, and why: file, object_id, reason"),
        ("provenance.json", "The model, the code and the inputs that made the release"),
        ("qa/index.html", "Plots and counts by which to judge the release"),
        ("SHA256SUMS", "Checksums of all files; verify with sha256sum -c SHA256SUMS"),
    ]
    cut = int(RECOMMENDED_CUT)
    return page(f"Data model of hpcspec-{survey}", [
        "<h2>Files</h2>", table(("file", "content"), files),
        f"<h2>Columns of hpcspec-{escape(survey)}.fits and hats/</h2>", _column_table(columns, dimension),
        "<p>Rows are sorted by _healpix_29, then object_id. A parameter that does not apply to an object is NaN, its error too. "
        "A parameter is outside its range only where one of the bits "
        f"{escape(' or '.join(f.name or '' for f in Flag if f in MAY_LEAVE_RANGE))} of flags is set.</p>",
        f"<h2>Columns of hpcspec-{escape(survey)}-embeddings.parquet</h2>", _column_table(embedding_columns(), dimension),
        "<h2>Bits of flags</h2>",
        table(("bit", "value", "name", "meaning"), [(f.value.bit_length() - 1, f.value, f.name, f.__doc__) for f in Flag]),
        "<h2>Recommended cut</h2>",
        f"<p><code>(flags &amp; {cut}) == 0</code>, which leaves out "
        f"{escape(', '.join(f.name or '' for f in Flag if f in RECOMMENDED_CUT))}.</p>",
    ])  # fmt: skip
