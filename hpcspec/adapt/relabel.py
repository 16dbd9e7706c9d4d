"""Training spectra moved to other labels, so that a head can't learn which noise belongs to which star.

A spectrum is moved some of the way to the labels of one that is like it (as Yao et al. 2022, arXiv 2210.05775, mix them) by what
the mean spectra differ there; its own noise, and all that the labels don't explain, stays, unless it is made anew.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.spatial import cKDTree

from hpcspec.adapt.heads import REDSHIFT, Task
from hpcspec.adapt.labels import LabelSet
from hpcspec.adapt.mean_spectra import level_of
from hpcspec.adapt.refine import Refine, learned
from hpcspec.stream.batch import Tokens
from hpcspec.stream.patches import LOG_ERROR
from hpcspec.stream.vocabulary import OBJECT, SPECTRA
from hpcspec.training.ranks import Ranks

FEWEST = 30  # objects, for each of the parameters and one
NEARBY, MOST_NEARBY = 1 / 3, 1000  # share of the objects, and how many at most, whose labels one may be moved towards
FACTOR = 3.0  # by which a level may change; beyond it the mean spectra don't hold


class Relabel:
    """Moves spectra of this rank's objects to labels in their neighbourhood; `usable` is False where there is too little to
    learn it from."""

    def __init__(self, items: Mapping[int, Tokens], labels: LabelSet, task: Task, train: np.ndarray, kinds: np.ndarray,
                 ranks: Ranks):  # fmt: skip
        self._columns = [k for k, p in enumerate(task.parameters) if p != REDSHIFT]
        names = [task.parameters[k] for k in self._columns]
        known = np.array([np.isfinite([labels.values[p][n] for p in names]).all() for n in train], bool) & bool(names)
        self._kinds, self._count = kinds, len(task.parameters)
        self._spread = np.array([task.spread[k] for k in self._columns])
        center = np.array([task.center[k] for k in self._columns])
        self._labels = {
            n: (np.array([labels.values[p][n] for p in names]) - center) / self._spread for n in train[known].tolist()
        }
        spectra = {n: items[n].spectra for n in items if n in self._labels and self._only_spectra(items[n])}
        self.usable = len(self._labels) >= FEWEST * (len(names) + 1) and ranks.any(bool(spectra))[0]
        if self.usable:
            self._all = np.stack(list(self._labels.values()))
            self._tree = cKDTree(self._all)
            self.mean = learned(self._labels, spectra, ranks)
        self._spectra = spectra

    def refine(self, ranks: Ranks) -> Refine | None:
        """The fit of the mean spectra, where they are usable."""
        if not self.usable:
            return None
        return Refine.of(self.mean, self._columns, self._all, self.mean.scatter2(self._labels, self._spectra, ranks))

    def _only_spectra(self, tokens: Tokens) -> bool:
        of_scalars = self._kinds[tokens.scalars.name]
        return bool(np.isfinite(tokens.spectra.sigma).any()) and not len(tokens.curves[0]) and \
            bool(np.isin(of_scalars, (OBJECT, SPECTRA)).all())  # fmt: skip

    def __call__(self, number: int, tokens: Tokens, rng: np.random.Generator, renew: bool = False) -> tuple[Tokens, np.ndarray]:
        """The object's tokens, moved, and by how much each parameter is (K of the task,), in its unit: 0 where it can't be.

        With `renew` lines and noise are new, those of the mean spectrum and drawn from the errors, on the object's own local
        level.
        """
        by = np.zeros(self._count)
        if not self.usable or number not in self._labels or not self._only_spectra(tokens):
            return tokens, by
        now, nearby = self._labels[number], min(MOST_NEARBY, int(NEARBY * len(self._labels)))
        _, (other,) = self._tree.query(now, [int(rng.integers(2, nearby + 2))])  # 1 is itself
        new = now + rng.random() * (self._all[other] - now)
        lines, level = self.mean.lines(np.stack([now, new])), self.mean.level(np.stack([now, new]))
        s, bins, at = tokens.spectra, np.arange(self.mean.bins), self.mean.places(tokens.spectra)
        rises = (level > 0).all(0)
        ratio = np.clip(np.where(rises, level[1], 1) / np.where(rises, level[0], 1), 1 / FACTOR, FACTOR)
        of_level, before, after = (np.interp(at, bins, x).astype(np.float32) for x in (ratio, *lines))
        values, good, own = s.values.copy(), np.isfinite(s.sigma), level_of(s) * of_level
        if renew:
            noise = np.where(good, np.minimum(s.sigma, 10 ** LOG_ERROR[1]), 0) * rng.standard_normal(good.shape, np.float32)
            changed = after + noise / np.where(own < 0, np.minimum(own, -0.1), np.maximum(own, 0.1))
        else:
            changed = values[..., 2] + after - before
        values[..., 2] = np.where(good, changed, values[..., 2])
        values[..., 0] = np.where(good, own * (1 + changed), own)
        by[self._columns] = (new - now) * self._spread
        return Tokens(tokens.scalars, s._replace(values=values), tokens.curves), by
