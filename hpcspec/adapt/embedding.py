"""The space of the published embeddings: the summary's directions, each in units of what differs between observations of one
object, so that what is near is the same as far as it can be known.

A summary is dominated by a few directions (the continuum, say), in which repeat observations differ as well. With the covariances
B of objects and W of observations of one object, the directions are the eigenvectors of W⁻¹B (Fisher's linear discriminants) of
unit W, and each is shrunk by λ/(1+λ), λ its ratio of variances: what is expected of the object (Ioffe 2006, "Probabilistic
linear discriminant analysis").
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from hpcspec.adapt.fit import evaluated
from hpcspec.adapt.heads import Adapted
from hpcspec.model.views import observed_again
from hpcspec.stream.batch import Batch, Tokens
from hpcspec.stream.index import DataIndex
from hpcspec.training.ranks import Ranks

log = logging.getLogger(__name__)
KNOWN, REPEATED = 20_000, 2_000  # training objects whose summaries are compared, and of these at most that are repeats
AGAIN, LEAST = 10, 2  # objects observed again, over all ranks, for each dimension; with fewer there is no map
SYSTEMATICS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # what observations differ by beside the noise, of all differences
UNKNOWN = 0.0  # … where too few objects were observed repeatedly to tell
SAME, FEW = np.radians(1.5 / 3600), 10  # how near on the sky the same object is; observations, to judge by


def repeats(index: DataIndex, numbers: np.ndarray) -> np.ndarray:
    """(n,) which object each of the observations (numbers in the index) is of, where others of them are of it too; else -1. The
    same object is at the same place; one whose place is only roughly known is alone."""
    ra, dec = (np.radians(index.column(name)[numbers]) for name in ("ra", "dec"))
    sure = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec) & (index.column("approximate")[numbers] == 0))
    found = np.full(len(numbers), -1)
    if len(sure) < 2:
        return found
    a, d = ra[sure], dec[sure]
    places = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], 1)
    distance, nearest = KDTree(places).query(places, 2, distance_upper_bound=SAME)
    rows, columns = np.nonzero(np.isfinite(distance))
    links = coo_array((np.ones(len(rows)), (rows, nearest[rows, columns])), shape=(len(sure), len(sure)))
    which = connected_components(links, directed=False)[1]
    several = np.bincount(which)[which] > 1
    found[sure[several]] = which[several]
    return found


def sampled(numbers: np.ndarray, of: np.ndarray, seed: int) -> np.ndarray:
    """Places in `numbers` of at most KNOWN of them, spread over all: repeats (`of` is not -1) first, whole objects of them."""
    if len(numbers) <= KNOWN:
        return np.arange(len(numbers))
    rng = np.random.default_rng(seed)
    objects = rng.permutation(np.unique(of[of >= 0]))
    enough = np.cumsum(np.bincount(of[of >= 0])[objects]) <= REPEATED
    chosen = np.isin(of, objects[enough])
    others = rng.permutation(np.flatnonzero(~chosen))[: KNOWN - chosen.sum()]
    return np.sort(np.concatenate([np.flatnonzero(chosen), others]))


def fit_embedding(adapted: Adapted, items: Mapping[int, Tokens], vectors: np.ndarray, of: np.ndarray,
                  ranks: Ranks) -> None:  # fmt: skip
    """Set the mean and the map of the embeddings. items: the tokens of training objects of this rank; vectors, of: the summaries
    (n, D) of objects of all ranks, and which of them are repeats (`repeats`), by which what is not noise is chosen: so that these
    find each other. With too few objects, or without any error known, the map stays as it is."""

    def again(batch: Batch) -> list[torch.Tensor]:
        return [adapted.summary(observed_again(batch)) for _ in range(2)]

    width, mean = vectors.shape[1], vectors.mean(0, dtype=np.float64)
    adapted.embedding_mean.copy_(torch.tensor(mean))
    numbers = list(items)
    places = np.unique(np.linspace(0, len(numbers) - 1, 1 + AGAIN * width // ranks.size).astype(int))
    with torch.random.fork_rng(devices=[adapted.device] if adapted.device.type == "cuda" else []):
        torch.manual_seed(ranks.rank)
        found = evaluated(adapted, {numbers[p]: items[numbers[p]] for p in places}, again)
    pairs = np.stack([[x.numpy() for x in two] for two in found.values()]).astype(np.float64)
    pairs = np.concatenate(ranks.gather(pairs))
    if len(pairs) < LEAST * width:
        return
    within, between = covariances(pairs)
    if np.trace(within) < 1e-9 * np.trace(between):
        return
    chosen, count = UNKNOWN, int((of >= 0).sum())
    if count >= FEW:
        shares = [found_next(((vectors - mean) @ directions(within, between, s)).astype(np.float32), of) for s in SYSTEMATICS]
        chosen = SYSTEMATICS[int(np.argmax(shares))]
        if ranks.rank == 0:
            log.info("adapt: %.0f %% of %d repeats are next to each other in the space of the embeddings, where %.2g of all "
                     "differences are systematic errors", 100 * max(shares), count, chosen)  # fmt: skip
    adapted.embedding_map.copy_(torch.tensor(directions(within, between, chosen)))


def covariances(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D, D) of observations of one object and of objects, from two (n, 2, D) with as much noise again of each observation: their
    mean has the noise of the observation and half of what was added."""
    within = np.cov((pairs[:, 0] - pairs[:, 1]).T) / 2
    return within, np.cov(pairs.mean(1).T) - 1.5 * within


def directions(within: np.ndarray, between: np.ndarray, systematics: float) -> np.ndarray:
    """(D, D) map to the shrunk discriminants of covariances (D, D), the largest ratio of variances first."""
    within = within + systematics * (between + within) + 1e-7 * np.trace(within) / len(within) * np.eye(len(within))
    values, vectors = np.linalg.eigh(within)
    white = vectors / np.sqrt(np.maximum(values, 1e-9 * values[-1]))
    ratio, turned = np.linalg.eigh(white.T @ between @ white)
    ratio = ratio.clip(0)
    return (white @ turned * (ratio / (1 + ratio)))[:, ::-1].copy()


def found_next(vectors: np.ndarray, of: np.ndarray) -> float:
    """Share of the repeats whose nearest neighbour (cosine) is of the same object."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    asked = np.flatnonzero(of >= 0)
    likeness = unit[asked] @ unit.T
    likeness[np.arange(len(asked)), asked] = -np.inf
    return float((of[likeness.argmax(1)] == of[asked]).mean())
