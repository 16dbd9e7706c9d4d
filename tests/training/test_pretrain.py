"""Pretraining on two ranks of this machine: every ZeRO stage learns the same, and nothing is lost or learnt twice by a kill."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from hpcspec.training.engine import complete_checkpoints
from tests.making import dataset
from tests.two_ranks import finish, launch

STEPS = 6
MODEL = {"patch": 8, "width": 32, "layers": 1, "decoder_layers": 1, "heads": 2, "frequencies": 8}
TRAINING = {"steps": STEPS, "warmup": 2, "lr": 5e-3, "tokens_per_batch": 96, "lanes": 4, "block": 4, "shuffle_blocks": 2,
            "save_every": 2, "log_every": 1}  # fmt: skip
LOSSES = {f"loss_{of}" for of in ("spectra", "curves", "scalars", "summary", "contrastive", "halves")}
KEYS = LOSSES | {"step", "lr", "loss", "spectra_s", "tokens_s", "data_wait", "memory_mib", "seconds", "nonfinite"}
OFFLOAD = {"stage": 3, "offload_optimizer": True, "offload_parameters": True}


def case(name: str, stage: int | dict[str, Any] = 2, model: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    zero = stage if isinstance(stage, dict) else {"stage": stage}
    sections = {"model": MODEL | (model or {}), "training": TRAINING | {"zero": zero} | training}
    return {"name": name, "config": {"name": name, "surveys": {"sdss": {}}, **sections}}


CASES = [
    *(case(f"zero{stage}", stage) for stage in range(4)),
    *(case(f"muon{stage}", stage, optimizer="muon") for stage in range(4)),
    case("muon-offload", OFFLOAD, optimizer="muon"),
    case("bf16", 2, precision="bf16"),
    case("offload", OFFLOAD),
    case("accumulated", 2, accumulation=2),
    case("poisoned2", 2) | {"poison": 2},
    case("poisoned3", 3, accumulation=2) | {"poison": 3},
    case("hopeless", 2, max_nonfinite=0) | {"poison": 0},
    case("wider", 2, {"width": 64}) | {"checkpoints": "zero2"},
    case("restaged", 3) | {"checkpoints": "zero2"},
    case("reseeded", 2) | {"checkpoints": "zero2"},
]
CASES[-1]["config"]["seed"] = 2
RESUMED = ("zero0", "zero1", "zero2", "muon0", "muon1", "muon2", "muon3", "muon-offload")


def begin(folder: Path, cases: list[dict[str, Any]]) -> list[subprocess.Popen[str]]:
    """Two ranks that go through the cases."""
    (folder / "cases.json").write_text(json.dumps(cases))
    return launch("tests.training.worker", folder, folder / "cases.json")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder)]


def error(folder: Path) -> str:
    return (folder / "error.txt").read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards and all cases done, one of them killed on the way; and of some, what a kill would have left."""
    folder = tmp_path_factory.mktemp("training")
    dataset(folder / "shards", [24, 24, 16], spread=1.0)
    killed = case("killed", 3)
    ranks = begin(folder, [*CASES, killed])
    deadline = time.monotonic() + 200
    while not complete_checkpoints(folder / "killed" / "checkpoints"):
        assert time.monotonic() < deadline and all(rank.poll() is None for rank in ranks)
        time.sleep(0.005)
    for rank in ranks:
        rank.kill()
    said = ranks[0].communicate()[0]
    assert [rank.wait() for rank in ranks] == [-9, -9], "it ended before it could be killed"
    for name in RESUMED:
        shutil.copytree(folder / name, folder / f"resumed-{name}")
        shutil.rmtree(folder / f"resumed-{name}" / "checkpoints" / f"step{STEPS:08d}")
    again = [one | {"name": f"resumed-{one['name']}", "config": one["config"] | {"name": f"resumed-{one['name']}"}}
             for one in CASES if one["name"] in RESUMED]  # fmt: skip
    said += finish(begin(folder, [killed, *again]))
    (folder / "log.txt").write_text(said)
    return folder


@pytest.mark.parametrize(
    ("name", "of"),
    [*((name, "zero0") for name in ("zero1", "zero2", "zero3", "offload")),
     *((name, "muon0") for name in ("muon1", "muon2", "muon3", "muon-offload"))],
)  # fmt: skip
def test_every_zero_stage_learns_the_same(trained: Path, name: str, of: str) -> None:
    assert len(losses(trained / of)) == STEPS
    np.testing.assert_allclose(losses(trained / name), losses(trained / of), atol=1e-4)
    weights, reference = (load_file(trained / n / "weights.safetensors") for n in (name, of))
    assert weights.keys() == reference.keys()
    for key in reference:
        # A bias of attention's keys has no gradient but rounding, which Adam makes as large as any.
        near = 2e-3 if key.endswith("key_value.bias") else 1e-3
        np.testing.assert_allclose(weights[key], reference[key], atol=near, err_msg=key)


@pytest.mark.parametrize("name", ["zero0", "muon0"])
def test_it_learns(trained: Path, name: str) -> None:
    first, *_, last = losses(trained / name)
    assert last < first - 0.5


def test_bfloat16_and_accumulation_learn_about_the_same(trained: Path) -> None:
    found, reference = losses(trained / "bf16"), losses(trained / "zero2")
    np.testing.assert_allclose(found, reference, atol=0.04)  # a step's loss is as rough as the rounded weights
    assert np.mean(found) == pytest.approx(np.mean(reference), abs=0.01)
    accumulated = metrics(trained / "accumulated")
    same = np.mean([line["loss_spectra"] for line in metrics(trained / "zero2")[:2]])  # the other losses draw at random
    assert accumulated[0]["loss_spectra"] == pytest.approx(same, abs=0.05)  # of the same two batches
    assert accumulated[-1]["loss"] < accumulated[0]["loss"] - 0.5


def test_metrics_say_what_a_person_asks(trained: Path) -> None:
    for line in metrics(trained / "zero2"):
        assert set(line) >= KEYS
        assert line["spectra_s"] > 0 and line["tokens_s"] > line["spectra_s"] and line["memory_mib"] > 0
        assert 0 <= line["data_wait"] <= 1
    assert [line["step"] for line in metrics(trained / "zero2")] == list(range(1, STEPS + 1))


def test_only_the_newest_checkpoints_are_kept(trained: Path) -> None:
    names = [p.name for p in complete_checkpoints(trained / "zero2" / "checkpoints")]
    assert names == ["step00000004", "step00000006"]
    assert sorted(p.name for p in (trained / "zero2" / "checkpoints").glob("step*")) == names


@pytest.mark.parametrize(("name", "clean"), [("poisoned2", "zero2"), ("poisoned3", "accumulated")])
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(trained: Path, name: str, clean: str) -> None:
    lines = metrics(trained / name)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["nonfinite"] for line in lines] == [0, *[1] * (STEPS - 1)] if name == "poisoned3" else [0, 0, *[1] * (STEPS - 2)]
    assert np.isfinite(losses(trained / name)).all()
    assert all(np.isfinite(w).all() for w in load_file(trained / name / "weights.safetensors").values())
    before = 1 if name == "poisoned3" else 2
    np.testing.assert_allclose(losses(trained / name)[:before], losses(trained / clean)[:before], atol=1e-4)
    assert "non-finite loss on some rank, batch skipped (1 so far)" in (trained / "log.txt").read_text()


def test_too_many_of_them_end_the_run(trained: Path) -> None:
    assert "1 non-finite losses: lower training.lr" in error(trained / "hopeless")
    assert not (trained / "hopeless" / "weights.safetensors").exists()


@pytest.mark.parametrize(("name", "said"), [("wider", "another model than"), ("restaged", "another training than"),
                                            ("reseeded", "the data or the configuration changed")])  # fmt: skip
def test_a_checkpoint_of_another_configuration_is_refused(trained: Path, name: str, said: str) -> None:
    assert said in error(trained / name)
    assert "new run folder" in error(trained / name)


@pytest.mark.parametrize(("name", "undisturbed"), [("killed", "zero3"), *((f"resumed-{name}", name) for name in RESUMED)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(trained: Path, name: str, undisturbed: str) -> None:
    going_on = re.findall(rf"{name}: .* going on at step (\d+) of {STEPS}", (trained / "log.txt").read_text())
    assert [0 < int(step) < STEPS for step in going_on] == [True]
    assert [line["step"] for line in metrics(trained / name)] == list(range(1, STEPS + 1))
    assert losses(trained / name) == losses(trained / undisturbed)
    weights, reference = (load_file(trained / n / "weights.safetensors") for n in (name, undisturbed))
    assert all(np.array_equal(weights[k], reference[k]) for k in reference)
