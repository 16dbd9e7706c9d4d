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
from scipy.spatial import KDTree

from hpcspec.adapt.fit import evaluated
from hpcspec.adapt.heads import Adapted
from hpcspec.model.views import observed_again
from hpcspec.stream.batch import Batch, Tokens
from hpcspec.training.ranks import Ranks

log = logging.getLogger(__name__)
MOST, LEAST = 10, 2  # objects observed again, over all ranks, for each dimension, and with fewer of which there is no map
SYSTEMATICS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # what observations differ by beside the noise, of all differences
UNKNOWN = 0.0  # … where too few objects were observed repeatedly to tell
SAME, FEW = np.radians(1.5 / 3600), 10  # how near on the sky the same object is; objects, to judge by


def fit_embedding(adapted: Adapted, items: Mapping[int, Tokens], summaries: Mapping[int, np.ndarray],
                  sky: tuple[np.ndarray, np.ndarray], ranks: Ranks) -> None:  # fmt: skip
    """Set the mean and the map of the embeddings from the training objects of all ranks: the summaries (D,) of this rank's, the
    tokens of which are in `items`, and ra, dec (deg) of all of the index. Where some were observed repeatedly, what is not noise
    is chosen by how well these find each other. With too few objects the map stays as it is."""

    def again(batch: Batch) -> list[torch.Tensor]:
        return [adapted.model.summary(adapted.model.encode(observed_again(batch))) for _ in range(2)]

    width = adapted.model.config.width
    share = dict(list(items.items())[: 1 + MOST * width // ranks.size])
    with torch.random.fork_rng(devices=[adapted.device] if adapted.device.type == "cuda" else []):
        torch.manual_seed(ranks.rank)
        found = evaluated(adapted, share, again)
    pairs = np.stack([[x.float().numpy() for x in found[n]] for n in share]).astype(np.float64)
    pairs = np.concatenate(ranks.gather(pairs))
    numbers, known = zip(*[(n, x) for part in ranks.gather(dict(summaries)) for n, x in part.items()], strict=True)
    vectors = np.array(known, np.float64)
    mean = vectors.mean(0)
    adapted.embedding_mean.copy_(torch.tensor(mean))
    if len(pairs) < LEAST * width:
        return
    within = np.cov((pairs[:, 0] - pairs[:, 1]).T) / 2
    between = np.cov(pairs.mean(1).T) - within / 2
    same = _repeats(*(x[np.array(numbers)] for x in sky))
    chosen = UNKNOWN
    if len(np.unique(same)) >= FEW:
        scores = [_found((vectors - mean) @ directions(within, between, s), same) for s in SYSTEMATICS]
        chosen = SYSTEMATICS[int(np.argmax(scores))]
        if ranks.rank == 0:
            log.info("adapt: %d observations of objects observed repeatedly, %.0f %% next to each other, %.2g of the differences "
                     "of objects are of observations", len(np.unique(same)), 100 * max(scores), chosen)  # fmt: skip
    adapted.embedding_map.copy_(torch.tensor(directions(within, between, chosen)))


def directions(within: np.ndarray, between: np.ndarray, systematics: float) -> np.ndarray:
    """(D, D) map to the shrunk discriminants of covariances (D, D), the largest ratio of variances first."""
    within = within + systematics * (between + within) + 1e-7 * np.trace(within) / len(within) * np.eye(len(within))
    values, vectors = np.linalg.eigh(within)
    white = vectors / np.sqrt(np.maximum(values, 1e-9 * values[-1]))
    ratio, turned = np.linalg.eigh(white.T @ between @ white)
    ratio = ratio.clip(0)
    return (white @ turned * (ratio / (1 + ratio)))[:, ::-1].copy()


def _repeats(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """(pairs, 2) places of observations of the same position, both ways."""
    known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if not len(known):
        return np.zeros((0, 2), int)
    a, d = np.radians(ra[known]), np.radians(dec[known])
    places = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], 1)
    found = KDTree(places).query_pairs(SAME, output_type="ndarray")
    return known[np.concatenate([found, found[:, ::-1]])]


def _found(vectors: np.ndarray, same: np.ndarray) -> float:
    """Share of the observations in `same` whose nearest neighbour (cosine) is one of the same position."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    of = np.unique(same[:, 0])
    likeness = unit[of] @ unit.T
    likeness[np.arange(len(of)), of] = -np.inf
    nearest = likeness.argmax(1)
    return float(np.isin(of * len(vectors) + nearest, same[:, 0] * len(vectors) + same[:, 1]).mean())
