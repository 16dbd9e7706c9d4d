"""Pictures beside the tables, as PNG; the same numbers give the same picture, whatever the user's settings of matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context, rcParamsDefault
from matplotlib.figure import Figure
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

from hpcspec.atomic import replacing

MOST = 2000  # points of an embedding map


def save(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Draw a figure of this size (inches) into a PNG file; returns its name."""
    with rc_context(rcParamsDefault | {"backend": "agg"}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    return path.name


def recovered(path: Path, name: str, truth: np.ndarray, found: Mapping[str, np.ndarray]) -> str:
    """Recovered against true, residuals below, one column for each method."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1.3])
        low, high = np.nanpercentile(truth, [0.2, 99.8])
        pad = 0.05 * (high - low)
        spread = max(float(np.nanpercentile(np.abs(v - truth), 98)) for v in found.values())
        for k, (method, value) in enumerate(found.items()):
            axes[0, k].plot(truth, value, ".", ms=3, alpha=0.5)
            axes[0, k].plot([low, high], [low, high], "k-", lw=0.8)
            axes[0, k].set(title=method, xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
            axes[1, k].plot(truth, value - truth, ".", ms=3, alpha=0.5)
            axes[1, k].axhline(0, color="k", lw=0.8)
            axes[1, k].set(xlabel=f"{name}, label", ylim=(-spread, spread))
        axes[0, 0].set_ylabel(f"{name}, recovered")
        axes[1, 0].set_ylabel("recovered − label")

    return save(path, (1 + 3.2 * len(found), 5.2), draw)


def kiel(path: Path, panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> str:
    """Kiel diagrams side by side: (teff, logg, colour by) of each panel."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        colours = [c for *_, c in panels.values() if c is not None]
        limits = np.nanpercentile(np.concatenate(colours), [2, 98]) if colours else (None, None)
        for axis, (title, (teff, logg, colour)) in zip(axes, panels.items(), strict=True):
            seen = axis.scatter(teff, logg, 5, colour, vmin=limits[0], vmax=limits[1])
            axis.set(title=title, xlabel="Teff [K]")
        axes[0].set_ylabel("log g")
        axes[0].invert_xaxis()
        axes[0].invert_yaxis()
        if colours:
            figure.colorbar(seen, ax=axes, label="[Fe/H]")

    return save(path, (1.5 + 3.4 * len(panels), 4), draw)


def reconstruction(path: Path, wavelength: np.ndarray, flux: np.ndarray, ivar: np.ndarray, model: np.ndarray,
                   hidden: np.ndarray | None = None, title: str = "") -> str:  # fmt: skip
    """A spectrum and its reconstruction, the residuals in σ below; pixels that the model didn't see are shaded."""

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.3])
        good = ivar > 0
        above.plot(wavelength, np.where(good, flux, np.nan), lw=0.6, color="0.6", label="observed")
        above.plot(wavelength, model, lw=0.9, color="C3", label="model")
        top = np.nanpercentile(np.where(good, flux, np.nan), [0.5, 99.5])
        above.set(ylim=(top[0] - 0.3 * np.ptp(top), top[1] + 0.3 * np.ptp(top)), ylabel="flux", title=title)
        below.plot(wavelength, np.where(good, (flux - model) * np.sqrt(ivar), np.nan), lw=0.5)
        below.axhspan(-1, 1, color="0.85", zorder=0)
        below.set(ylim=(-6, 6), ylabel="residual [σ]", xlabel="vacuum wavelength [Å]")
        for axis in (above, below) if hidden is not None else ():
            axis.fill_between(wavelength, 0, 1, where=hidden, transform=axis.get_xaxis_transform(), alpha=0.2, color="C1")
        above.legend(loc="upper right")

    return save(path, (9, 4.8), draw)


def calibration(path: Path, z: Mapping[str, np.ndarray]) -> str:
    """Share of truths within the central interval against the interval's nominal share, from (value − truth)/error."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        nominal = np.linspace(0.02, 0.99, 60)
        axis.plot([0, 1], [0, 1], "k-", lw=0.8)
        for name, values in z.items():
            axis.plot(nominal, [(np.abs(values) <= norm.ppf(0.5 + p / 2)).mean() for p in nominal], label=name)
        axis.set(
            xlabel="nominal share of the interval", ylabel="share of labels inside", xlim=(0, 1), ylim=(0, 1), aspect="equal"
        )
        axis.legend()

    return save(path, (4.6, 4.4), draw)


def confusion(path: Path, truth: np.ndarray, found: Mapping[str, np.ndarray]) -> str:
    """Confusion matrices, rows normalised, one for each method."""
    names = sorted({*truth.tolist(), *(c for p in found.values() for c in p.tolist())})
    side = max(3.2, 0.33 * len(names) + 1.5)

    def draw(figure: Figure) -> None:
        for axis, (method, predicted) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
            matrix = confusion_matrix(truth, predicted, labels=names)
            share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
            shown = ConfusionMatrixDisplay(share, display_labels=names)
            shown.plot(ax=axis, colorbar=False, values_format=".2f", include_values=len(names) <= 8, xticks_rotation="vertical")
            shown.im_.set_clim(0, 1)
            axis.set_title(method)

    return save(path, (side * len(found), side), draw)


def efficiency(
    path: Path, figure_name: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]
) -> str:
    """A figure against the number of labels: (numbers, means, standard deviations) of each method."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for name, (n, mean, sd) in curves.items():
            axis.errorbar(n, mean, np.nan_to_num(sd), marker="o", capsize=3, label=name)
        numbers = sorted({x for n, *_ in curves.values() for x in n})
        axis.set(xscale="log", xlabel="labels", ylabel=figure_name)
        axis.set_xticks(numbers, [f"{x:g}" for x in numbers])
        axis.minorticks_off()
        if min(min(m) for _, m, _ in curves.values()) > 0 and "accuracy" not in figure_name and "F1" not in figure_name:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend()

    return save(path, (6, 4.2), draw)


def embedding_map(path: Path, vectors: np.ndarray, colours: Mapping[str, np.ndarray], seed: int = 0) -> str:
    """A t-SNE map of embeddings (n, d), coloured by each quantity: numbers (n,) or text."""
    rng = np.random.default_rng(seed)
    some = np.sort(rng.choice(len(vectors), min(len(vectors), MOST), replace=False))
    small = PCA(min(30, len(some), vectors.shape[1]), random_state=seed).fit_transform(vectors[some])
    place = TSNE(perplexity=min(30, (len(some) - 1) / 3), random_state=seed, init="pca").fit_transform(small)

    def draw(figure: Figure) -> None:
        for axis, (name, value) in zip(figure.subplots(1, len(colours), squeeze=False)[0], colours.items(), strict=True):
            value = value[some]
            axis.set(title=name, xticks=[], yticks=[])
            if value.dtype.kind == "f":
                low, high = np.nanpercentile(value, [2, 98])
                figure.colorbar(axis.scatter(*place.T, s=6, c=value, vmin=low, vmax=high), ax=axis)
                continue
            for kind in sorted(set(value.tolist())):
                axis.plot(*place[value == kind].T, ".", ms=4, label=kind or "unknown")
            axis.legend(fontsize="small", markerscale=2, ncols=1 + len(set(value.tolist())) // 14)

    return save(path, (4.8 * len(colours), 4.2), draw)


def locus(path: Path, panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]], names: tuple[str, str, str]) -> str:
    """Two quantities of the same objects against each other, by each method: (x, y, colour by) of each panel."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (title, (x, y, colour)) in zip(axes, panels.items(), strict=True):
            seen = axis.scatter(x, y, 5, colour)
            axis.set(title=title, xlabel=names[0])
        axes[0].set_ylabel(names[1])
        if all(colour is not None for *_, colour in panels.values()):
            figure.colorbar(seen, ax=axes, label=names[2])

    return save(path, (1.5 + 3.4 * len(panels), 4), draw)


def lines(path: Path, x: np.ndarray, curves: Mapping[str, np.ndarray], names: tuple[str, str]) -> str:
    """Curves over x (n,), the first of which is the truth, and their differences from it below."""

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.3])
        truth = next(iter(curves.values()))
        for k, (name, curve) in enumerate(curves.items()):
            above.plot(x, curve, "k-" if k == 0 else "o-", ms=3, lw=0.8, label=name)
            below.plot(x, curve - truth, "k-" if k == 0 else "o-", ms=3, lw=0.8)
        above.set(ylabel=names[1])
        below.set(xlabel=names[0], ylabel="difference")
        above.legend()

    return save(path, (7, 4.8), draw)
