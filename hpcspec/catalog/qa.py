"""The quality page: counts and plots of a release, gathered as the rows pass by, in one HTML file."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from hpcspec.catalog.datamodel import page, table
from hpcspec.catalog.schema import RECOMMENDED_CUT, Column, Flag, labels

_LON, _LAT = np.linspace(-180, 180, 145), np.linspace(-90, 90, 73)
_SN = np.logspace(-1, 4, 101)
_TEFF, _LOGG = np.linspace(3000, 12000, 181), np.linspace(-0.5, 5.5, 121)


def _plot(size: tuple[float, float], draw: Callable[[Axes], Any], title: str, projection: str | None = None) -> str:
    """An <img> with the figure inside it; the same numbers give the same bytes, whatever the user's settings of matplotlib."""
    buffer = io.BytesIO()
    with rc_context(rcParamsDefault | {"backend": "agg"}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot(projection=projection))
        figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


class Quality:
    """Histograms of a catalogue with these columns: `add` its rows, then ask for the `html`."""

    def __init__(self, columns: Sequence[Column]):
        self._classes, self._parameters = labels(columns)
        self._rows = self._good = 0
        self._sky = np.zeros((len(_LON) - 1, len(_LAT) - 1))
        self._kiel = np.zeros((len(_TEFF) - 1, len(_LOGG) - 1)) if {"teff", "logg"} <= set(self._parameters) else None
        self._sn = np.zeros(len(_SN) - 1)
        self._class, self._flag = Counter[str](), Counter[Flag]()
        self._finite = Counter[str]()
        self._error = dict.fromkeys(self._parameters, 0.0)

    def add(self, rows: pa.Table) -> None:
        """Count some rows of the catalogue."""
        value = {n: rows[n].to_numpy() for n in ("ra", "dec", "sn_median", "flags", *self._parameters)}
        self._rows += rows.num_rows
        self._sky += np.histogram2d((value["ra"] + 180) % 360 - 180, value["dec"], (_LON, _LAT))[0]
        self._sn += np.histogram(np.clip(value["sn_median"], _SN[0], _SN[-1]), _SN)[0]
        if self._kiel is not None:
            self._kiel += np.histogram2d(value["teff"], value["logg"], (_TEFF, _LOGG))[0]
        self._class.update(rows["class"].to_pylist())
        self._good += int(np.sum((value["flags"] & RECOMMENDED_CUT) == 0))
        self._flag.update({f: int(np.sum((value["flags"] & f) != 0)) for f in Flag})
        for name in self._parameters:
            good = np.isfinite(value[name])
            self._finite[name] += int(good.sum())
            self._error[name] += float(rows[f"{name}_err"].to_numpy()[good].astype(np.float64).sum())

    def html(self, survey: str, facts: Mapping[str, Any], timing: Mapping[str, float]) -> str:
        """The page. facts: what stands on top of it, by name; timing: seconds by stage, where the run recorded them."""
        body = [table(("fact", "value"), [*facts.items(), ("rows that pass the recommended cut", self._good)]),
                "<h2>Sky</h2>", _plot((9, 4.5), self._draw_sky, "sky map", "mollweide"),
                "<p>Equatorial, ICRS; ra = 0 in the centre, increasing to the right.</p>", "<h2>Signal to noise</h2>",
                _plot((7, 3.5), self._draw_sn, "histogram of sn_median")]  # fmt: skip
        if self._kiel is not None and self._kiel.any():
            body += ["<h2>Kiel diagram</h2>", _plot((7, 5), self._draw_kiel, "logg against teff")]
        if self._classes:
            counts = [(c, self._class[c], f"{100 * self._class[c] / max(self._rows, 1):.2f} %") for c in self._classes]
            body += ["<h2>Classes</h2>", table(("class", "objects", "share"), counts)]
        if self._parameters:
            rows = [(p, self._finite[p], f"{self._error[p] / max(self._finite[p], 1):.4g}") for p in self._parameters]
            body += ["<h2>Parameters</h2>", table(("parameter", "objects that have it", "mean error"), rows)]
        body += ["<h2>Flags</h2>", table(("flag", "objects"), [(f.name, self._flag[f]) for f in Flag])]
        if timing:
            body += ["<h2>Timing</h2>", table(("stage", "seconds"), [(k, f"{v:.1f}") for k, v in timing.items()])]
        return page(f"Quality of hpcspec-{survey}", body)

    def _draw_sky(self, axes: Axes) -> None:
        mesh = axes.pcolormesh(np.radians(_LON), np.radians(_LAT), self._sky.T, norm=LogNorm(0.9, max(2, self._sky.max())))
        axes.grid(alpha=0.3)
        axes.figure.colorbar(mesh, ax=axes, label="objects per cell of 2.5°")

    def _draw_sn(self, axes: Axes) -> None:
        axes.stairs(self._sn, _SN, fill=True)
        axes.set(xscale="log", xlabel="median S/N per pixel", ylabel="objects")

    def _draw_kiel(self, axes: Axes) -> None:
        assert self._kiel is not None
        mesh = axes.pcolormesh(_TEFF, _LOGG, self._kiel.T, norm=LogNorm(0.9, max(2, self._kiel.max())))
        axes.set(xlabel="teff [K]", ylabel="logg [dex(cm s-2)]", xlim=(_TEFF[-1], _TEFF[0]), ylim=(_LOGG[-1], _LOGG[0]))
        axes.figure.colorbar(mesh, ax=axes, label="objects")
