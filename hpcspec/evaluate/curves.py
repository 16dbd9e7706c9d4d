"""Baselines for light curves: a random forest on the usual features, and a recurrent network on the samples."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from astropy.timeseries import LombScargle
from joblib import Parallel, delayed
from scipy.stats import skew
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from hpcspec.evaluate.baselines import Effort
from hpcspec.evaluate.inputs import Sample
from hpcspec.surveys.observation import Curve, Observation

MOST_PER_DAY = 5.0  # cycles: the shortest period that is looked for is 0.2 d
LONGEST = 100  # samples of a band that the network reads: in two bands the 200 of Rizhko & Bloom (2024)


def _good(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    use = curve.ivar > 0
    return curve.time[use], curve.value[use].astype(np.float64), 1 / np.sqrt(curve.ivar[use].astype(np.float64))


def _statistics(curve: Curve) -> list[float]:
    """Period and its power (Lomb–Scargle), amplitudes, percentiles, skewness, von Neumann's η and χ² of one band."""
    time, value, error = _good(curve)
    if len(value) < 5:
        return [np.nan] * 16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frequency, power = LombScargle(time, value, error).autopower(
            minimum_frequency=0.5 / max(np.ptp(time), 1.0), maximum_frequency=MOST_PER_DAY, samples_per_peak=4
        )
    power = np.nan_to_num(power)
    best = frequency[int(power.argmax())]
    q = np.percentile(value, [5, 10, 25, 50, 75, 90, 95])
    folded = value[np.argsort(time * best % 1)]
    variance = value.var() or 1e-12
    return [1 / best, float(power.max()), *(q - q[3])[[0, 1, 2, 4, 5, 6]], float(np.ptp(value)), float(value.std()),
            float(skew(value)), float(np.mean(np.diff(value) ** 2) / variance), float(np.mean(np.diff(folded) ** 2) / variance),
            float(np.median(np.abs(value - q[3]))), float(np.mean(((value - q[3]) / error) ** 2)), float(q[3])]  # fmt: skip


def features(objects: Sequence[Observation], bands: Sequence[str]) -> np.ndarray:
    """Values (n, m) of the features of these bands, 16 each, and the colours between them; NaN where there is no light curve."""
    rows = Parallel(os.cpu_count())(delayed(_features)(one.curves, bands) for one in objects)
    return np.array(rows, np.float64).reshape(len(objects), -1)


def _features(curves: Sequence[Curve], bands: Sequence[str]) -> list[float]:
    of_band = {c.band: _statistics(c) for c in curves}
    by_band = [of_band.get(b, [np.nan] * 16) for b in bands]
    return [*(x for band in by_band for x in band), *(a[-1] - b[-1] for a, b in itertools.pairwise(by_band))]


class Gru(nn.Module):
    """A two-layer bidirectional recurrent network on (Δt, value, error, band) with the scalars joined before the last layer."""

    def __init__(self, bands: int, scalars: int, classes: int, width: int = 64):
        super().__init__()
        self.recurrent = nn.GRU(3 + bands, width, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.last = nn.Sequential(nn.Linear(4 * width + scalars, width), nn.GELU(), nn.Dropout(0.2), nn.Linear(width, classes))

    def forward(self, samples: torch.Tensor, lengths: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes) of padded samples (n, t, 3 + bands) and scalars (n, s)."""
        out = self.recurrent(samples)[0]  # packed, the same takes several times as long on a CPU
        there = torch.arange(samples.shape[1]) < lengths[:, None]
        mean = (out * there[..., None]).sum(1) / lengths[:, None]
        forwards, backwards = out[torch.arange(len(out)), lengths - 1].chunk(2, 1)[0], out[:, 0].chunk(2, 1)[1]
        return self.last(torch.cat([forwards, backwards, mean, scalars], 1))


def _sequence(one: Observation, bands: Sequence[str]) -> torch.Tensor:
    """(t, 3 + bands) float32 in time order: log10 of 1 + the last step, value and error over the scatter, band."""
    parts = []
    for curve in one.curves:
        time, value, error = (x[:LONGEST] for x in _good(curve))
        if len(value):
            hot = np.zeros((len(value), len(bands)))
            hot[:, bands.index(curve.band)] = 1
            parts.append(np.column_stack([time, value - np.median(value), error, hot]))
    if not parts:
        return torch.zeros(1, 3 + len(bands))
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    scale = max(float(np.std(rows[:, 1])), 1e-6)
    rows[:, 0] = np.log10(1 + np.diff(rows[:, 0], prepend=rows[0, 0]))
    rows[:, 1:3] = np.clip(rows[:, 1:3] / scale, -10, 10)
    return torch.tensor(rows, dtype=torch.float32)


def _scalars(train: Sequence[Observation], test: Sequence[Observation], metadata: bool) -> list[torch.Tensor]:
    """Scalars and median magnitudes and log scatter, standardised on the training set, missing ones at its mean."""
    both = [[_median_and_scatter(one) | ({k: v for k, (v, _) in one.scalars.items()} if metadata else {}) for one in part]
            for part in (train, test)]  # fmt: skip
    names = sorted({n for row in both[0] for n in row})
    a, b = (np.array([[row.get(n, np.nan) for n in names] for row in part], np.float64).reshape(len(part), -1) for part in both)
    low, high = np.nanquantile(a, [0.01, 0.99], axis=0)
    wide = (low > 0) & (high > 100 * low)
    a, b = (np.where(wide, np.log10(np.maximum(x, 1e-9)), x) for x in (a, b))
    middle, spread = np.nanmean(a, axis=0), np.nanstd(a, axis=0) + 1e-9
    return [torch.tensor(np.nan_to_num(np.clip((x - middle) / spread, -5, 5)), dtype=torch.float32) for x in (a, b)]


def _median_and_scatter(one: Observation) -> dict[str, float]:
    found: dict[str, float] = {}
    for curve in one.curves:
        value = _good(curve)[1]
        if len(value):
            found |= {
                f"{curve.band} median": float(np.median(value)),
                f"{curve.band} log std": float(np.log10(value.std() + 1e-6)),
            }
    return found


def gru(train: Sample, test: Sample, seed: int, effort: Effort, metadata: bool) -> np.ndarray:
    """Classes of `test` by a recurrent network: AdamW, one-cycle rate, classes weighted by the root of their rarity."""
    torch.manual_seed(seed)
    torch.set_num_threads(effort.threads)
    rng = np.random.default_rng(seed)
    bands = sorted({c.band for one in train.objects for c in one.curves})
    names, codes = np.unique(train.classes, return_inverse=True)
    sets = [[_sequence(one, bands) for one in part.objects] for part in (train, test)]
    tables = _scalars(train.objects, test.objects, metadata)
    model = Gru(len(bands), tables[0].shape[1], len(names))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    size = min(max(len(train) // 16, 16), 128)
    epochs = round(effort.epochs * max(1.0, (500 / len(train)) ** 0.5))
    steps = epochs * -(-len(train) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    rarity = torch.tensor(np.sqrt(len(codes) / (len(names) * np.bincount(codes))), dtype=torch.float32)

    def batch(which: np.ndarray, part: int) -> tuple[torch.Tensor, ...]:
        rows = [sets[part][i] for i in which]
        return pad_sequence(rows, batch_first=True), torch.tensor([len(r) for r in rows]), tables[part][which]

    for _ in range(epochs):
        order = rng.permutation(len(train))
        for start in range(0, len(train), size):
            which = order[start : start + size]
            loss = nn.functional.cross_entropy(model(*batch(which, 0)), torch.tensor(codes[which]), rarity)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        parts = [model(*batch(np.arange(i, min(i + 128, len(test))), 1)).argmax(1) for i in range(0, len(test), 128)]
    return names[torch.cat(parts).numpy()]
