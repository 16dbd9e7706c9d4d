"""Each mode of adaptation trains what it says, and leaves the rest."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hpcspec.adapt.heads import Task
from hpcspec.adapt.train import adapt, split
from hpcspec.catalog.task import Predictor
from hpcspec.config import Adapt, Config
from hpcspec.errors import UserError
from hpcspec.model.weights import save_model
from hpcspec.stream.index import open_index
from tests.making import batch, shard, star, words
from tests.model.small import SMALL, made
from tests.tiny import contained

COUNT = 120
ADAPT = {"steps": 12, "tokens_per_batch": 512, "held_out": 0.3, "calibration": 0.3, "threads": 1, "baseline": "none",
         "rank": 2, "noise": 0.3, "drop_tokens": 0.2, "drop_kinds": 0.2}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shard of stars, their labels, and pretrained weights."""
    folder = tmp_path_factory.mktemp("modes")
    shard(folder / "sdss-00000.h5", [star(n, 40, 12) for n in range(COUNT)])
    with open(folder / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["object_id", "kind", "logg"])
        rows.writerows([f"object-{n:04d}", "GIANT" if n % 3 else "DWARF", 2 + n % 3] for n in range(COUNT))
    model = made()
    save_model(folder / "weights.safetensors", model.config, model.vocabulary, model.state_dict())
    return folder


def adapted(data: Path, out: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """What a mode leaves in `out`: the weights."""
    labels = {"path": str(data / "labels.csv"), "object_class": "kind", "parameters": {"logg": "logg"}}
    config = Config.model_validate({"surveys": {"sdss": {"labels": labels}}, "model": SMALL.model_dump(),
                                    "adapt": ADAPT | settings})  # fmt: skip
    out.mkdir(exist_ok=True)
    with contained():
        adapt(config, [data / "sdss-00000.h5"], data / "weights.safetensors", out)
    return load_file(out / "weights.safetensors")


@pytest.fixture(scope="module")
def found(data: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {mode: adapted(data, data / mode, mode=mode) for mode in ("frozen", "low_rank", "full")}


def changes(data: Path, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By how much the weights of the pretrained model changed."""
    before = load_file(data / "weights.safetensors")
    return {name: weights[f"model.{name}"] - old for name, old in before.items()}


@pytest.mark.parametrize("mode", ["frozen", "low_rank", "full"])
def test_the_weights_are_those_of_a_plain_model_and_head(data: Path, found: dict, mode: str) -> None:
    assert found[mode].keys() == found["frozen"].keys()
    assert all(torch.isfinite(x).all() for x in found[mode].values())
    task = Task.load(data / mode / "task.json")
    assert task.separate_encoder == (mode != "frozen") and task.classes == ("DWARF", "GIANT") and task.parameters == ("logg",)
    assert task.report["mode"] == mode and task.report["classes"]["all"]["n"] > 10
    assert (found[mode]["head.logits.weight"] - found["frozen"]["head.logits.weight"]).abs().max() > 0 or mode == "frozen"


def test_frozen_leaves_the_encoder(data: Path, found: dict) -> None:
    assert all((change == 0).all() for change in changes(data, found["frozen"]).values())


def test_low_rank_changes_the_matrices_of_the_encoder_by_that_rank(data: Path, found: dict) -> None:
    for name, change in changes(data, found["low_rank"]).items():
        if name.startswith("encoder.") and change.ndim == 2:
            values = torch.linalg.svdvals(change.double())
            assert values[0] > 1e-6 and (values[ADAPT["rank"] :] < 1e-2 * values[0] + 1e-6).all(), name
        else:
            assert (change == 0).all(), name


def test_full_changes_encoder_and_embeddings_but_not_what_only_pretraining_uses(data: Path, found: dict) -> None:
    unused = ("decoder.", "norm_decoder.", "query.", "answer_", "pool.", "project.", "project_half.", "log_temperature")
    buffers = ("embed_scalar.center", "embed_scalar.spread", "embed_scalar.logarithmic")
    for name, change in changes(data, found["full"]).items():
        assert bool((change == 0).all()) == name.startswith((*unused, *buffers)), name


@pytest.mark.parametrize("mode", ["frozen", "low_rank", "full"])
def test_the_same_seed_gives_the_same_weights(data: Path, found: dict, tmp_path: Path, mode: str) -> None:
    again = adapted(data, tmp_path / "again", mode=mode)
    assert all(torch.equal(again[name], x) for name, x in found[mode].items())


@pytest.mark.parametrize("mode", ["frozen", "low_rank", "full"])
def test_a_predictor_reads_what_was_written(data: Path, found: dict, mode: str) -> None:
    config = Config.model_validate({"surveys": {"sdss": {}}, "model": SMALL.model_dump(), "adapt": ADAPT | {"mode": mode}})
    predictor = Predictor(config, data / "weights.safetensors", data / mode)
    given = batch([star(n, 40, 12) for n in range(5)])
    rows = predictor(given)
    assert all(np.isfinite(x).all() for x in rows.values())
    counts = [sum(int((part.ivar > 0).sum()) for part in star(n, 40, 12).arms) for n in given.objects.tolist()]
    epochs = [sum(int((part.ivar > 0).sum()) for part in star(n, 40, 12).curves) for n in given.objects.tolist()]
    assert rows["pixels"].tolist() == counts and rows["epochs"].tolist() == epochs
    with torch.inference_mode():
        summary = made().summary(made().encode(given))  # of the pretrained one
        np.testing.assert_array_equal(rows["embedding"], predictor.adapted.embedding(summary).numpy())
    weights = load_file(data / mode / "weights.safetensors")
    expected = (summary - weights["embedding_mean"]) @ weights["embedding_map"]
    torch.testing.assert_close(torch.tensor(rows["embedding"]), expected, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(weights[f"embedding_{name}"], found["frozen"][f"embedding_{name}"]) for name in ("mean", "map"))


def test_weights_of_another_model_are_refused(data: Path, found: dict, tmp_path: Path) -> None:
    config = Config.model_validate({"surveys": {"sdss": {}}, "model": SMALL.model_dump()})
    other = made(width=64)
    save_model(tmp_path / "weights.safetensors", other.config, other.vocabulary, other.state_dict())
    with pytest.raises(UserError, match="are of another model configuration"):
        Predictor(config, tmp_path / "weights.safetensors", data / "frozen")


def test_a_head_doesn_t_read_the_scalars_that_it_is_to_predict(data: Path) -> None:
    """Stars have teff and parallax among their scalars: with teff as a label, changing its value changes
    nothing, nor the embedding, or labels would be found in it."""
    with open(data / "teff.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["object_id", "kind", "logg"])
        rows.writerows([f"object-{n:04d}", "GIANT" if n % 3 else "DWARF", 4000 + 10 * n] for n in range(COUNT))
    labels = {"path": str(data / "teff.csv"), "object_class": "kind", "parameters": {"teff": "logg"}}
    config = Config.model_validate({"surveys": {"sdss": {"labels": labels}}, "model": SMALL.model_dump(), "adapt": ADAPT})
    (data / "withheld").mkdir(exist_ok=True)
    with contained():
        task = adapt(config, [data / "sdss-00000.h5"], data / "weights.safetensors", data / "withheld")
    assert task is not None and task.withheld == ("teff",) and Task.load(data / "withheld" / "task.json").withheld == ("teff",)
    predictor = Predictor(config, data / "weights.safetensors", data / "withheld")
    stars = [star(n, 40, 12) for n in range(4)]
    hotter = [replace(s, scalars={**s.scalars, "teff": (s.scalars["teff"][0] + 900.0, 10.0)}) for s in stars]
    other = [replace(s, scalars={**s.scalars, "parallax": (s.scalars["parallax"][0] + 3.0, 0.1)}) for s in stars]
    first, second, third = (predictor(batch(of, words(SMALL.patch))) for of in (stars, hotter, other))
    assert (first["value"] == second["value"]).all() and (first["probability"] == second["probability"]).all()
    assert (first["value"] != third["value"]).any() and (first["embedding"] == second["embedding"]).all()


def test_nothing_need_be_held_out(data: Path) -> None:
    """Then all but the calibration objects are trained on, and nothing is reported of how accurate it is."""
    adapted(data, data / "all", held_out=0.0)
    task = Task.load(data / "all" / "task.json")
    assert set(task.report) == {"mode", "seconds"} and min(task.error_scale) > 0


def test_few_labels_calibrate_all_the_same(data: Path) -> None:
    """Of fifteen labelled stars five calibrate, whatever the share; of nine there are too few to train."""
    index = open_index([data / "sdss-00000.h5"])
    for count, wanted in ((15, 10), (40, 30)):
        labelled = np.arange(COUNT) < count
        parts = split(index, labelled, 3, Adapt(held_out=0.0, calibration=0.01))
        assert len(parts.calibration) == 5 and wanted - 1 <= len(parts.train) <= count - 5 and len(parts.test) == 0
        assert not set(parts.train) & set(parts.calibration)
    with pytest.raises(UserError, match="9 labelled objects are too few to train, calibrate and test a head"):
        split(index, np.arange(COUNT) < 9, 3, Adapt(held_out=0.0))
