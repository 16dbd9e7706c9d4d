"""A run that reads spectra, light curves and scalars: a model as it was initialised, and a head trained for a few steps."""

from __future__ import annotations

import csv
from pathlib import Path

from hpcspec.adapt.train import adapt
from hpcspec.cluster.run import Run
from hpcspec.config import Config
from hpcspec.model.weights import save_model
from tests.making import shard, star
from tests.model.small import SMALL, made
from tests.tiny import contained

COUNT = 100


def make_run(place: Path) -> Run:
    """The run in `place/run`; of its stars each third one is a dwarf."""
    run = Run(place / "run")
    with open(place / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["object_id", "kind", "logg"])
        rows.writerows([f"object-{n:04d}", "GIANT" if n % 3 else "DWARF", 2 + n % 3] for n in range(COUNT))
    labels = {"path": str(place / "labels.csv"), "object_class": "kind", "parameters": {"logg": "logg"}}
    config = Config.model_validate({
        "surveys": {"sdss": {"labels": labels}}, "model": SMALL.model_dump(),
        "adapt": {"steps": 8, "tokens_per_batch": 512, "held_out": 0.3, "calibration": 0.3, "threads": 1, "baseline": "none"},
    })  # fmt: skip
    run.create(config)
    run.adapted.mkdir(parents=True)
    model = made()
    save_model(run.weights, model.config, model.vocabulary, model.state_dict())
    path = shard(run.shards("sdss") / "sdss-00000.h5", [star(n, 40, 12) for n in range(COUNT)])
    with contained():
        adapt(config, [path], run.weights, run.adapted)
    return run
