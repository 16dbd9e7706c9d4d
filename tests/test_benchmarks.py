"""The benchmarks run and give every figure; how good the figures are is for a quiet machine and RESULTS.md."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hpcspec.shards.format import shard_paths
from hpcspec.shards.ingest import ingest
from hpcspec.shards.shard import Shard
from hpcspec.simulate import simulate
from hpcspec.stream.index import open_index
from hpcspec.surveys import discover, read
from hpcspec.surveys.observation import Observation
from tests.making import stored, unlike

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SPECTRA = 640


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, ModuleType]]:
    """The modules of the folder, which find each other by being in it."""
    names = ("disk", "model", "peers", "processes", "survey_mix")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, Any]:
    """What one quick run without the peers found."""
    out = folder / "figures.json"
    command = [sys.executable, str(BENCHMARKS / "stream.py"), "--json", str(out), "--folder", str(folder / "data"),
               "--quick", "--spectra", str(SPECTRA), "--skip", "peers", "ranks", "memory"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "spectra of sdss, desi, apogee, galah" in done.stdout
    return json.loads(out.read_text())


def test_every_figure_is_there_or_its_absence_explained(figures: dict[str, Any]) -> None:
    wanted = {"cold_ratio", "warm_ratio", "rss_mib", "packing_useful", "plan_100m_s", "plan_100m_mib", "first_batch_s",
              "disk_ratio_fits", "disk_ratio_mmu"}  # fmt: skip
    assert {key for key in wanted if key not in figures and not figures["not_measured"].get(key)} == set()
    assert not {"vs_hf_datasets", "vs_h5py_random"} & set(figures)


def test_figures_are_possible(figures: dict[str, Any]) -> None:
    assert figures["spectra"] == SPECTRA and figures["shards"] >= 4
    assert 0 < figures["warm_ratio"] == pytest.approx(figures["warm_mb_s"] / figures["warm_plain_mb_s"])
    assert 0.5 < figures["packing_useful"] <= 1 and 0.9 < figures["packing_filled"] <= 1
    assert figures["rss_imports_mib"] < figures["rss_mib"] < 4096
    assert 0 < figures["plan_100m_index_mib"] <= figures["plan_100m_mib"] < figures["plan_100m_total_mib"]
    assert 0 < figures["plan_100m_s"] < 60
    if "cold_ratio" in figures:
        assert figures["cold_ratio"] > 0 and 0 < figures["first_batch_s"] < 60
    sizes = figures["disk_bytes_per_spectrum"]
    for of in sizes.values():
        assert of["shards_blosc"] < of["shards_none"] < of["mmu"] <= of["mmu_whole"]
        assert of["shards_none"] < of["fits"]
    assert figures["disk_ratio_mmu_whole"] < figures["disk_ratio_mmu"] < 1


def test_the_mix_is_what_it_says(figures: dict[str, Any], folder: Path, programs: dict[str, ModuleType]) -> None:
    data = folder / "data" / f"mix-{SPECTRA}"
    written = {path: path.stat().st_mtime_ns for path in data.glob("*.h5")}
    index = open_index(shard_paths(data))
    counts = dict(zip(*np.unique(index.survey, return_counts=True), strict=True))
    assert counts == {"sdss": 256, "desi": 160, "apogee": 160, "galah": 64}
    for shard in index.shards:
        with Shard(shard) as opened:
            assert np.all(np.diff(opened.column("healpix")) >= 0)
    galah = next(s for s in index.shards if s.survey == "galah")
    assert galah.grids == 4 * counts["galah"]
    assert set(programs["survey_mix"].write_mix(data, SPECTRA, 128)) == set(written)
    assert {path: path.stat().st_mtime_ns for path in data.glob("*.h5")} == written
    cut = programs["survey_mix"].cut_up([data / "galah-00000.h5"], folder / "cut", 10)
    whole, parts = stored(data / "galah-00000.h5"), [row for path in cut for row in stored(path)]
    assert len({arm.grid for one, *_ in whole for arm in one.arms}) == 4 * counts["galah"]
    assert len(cut) == 10 and not any(unlike(a, b) for (a, *_), (b, *_) in zip(whole, parts, strict=True))


@pytest.mark.parametrize("name", ["h5py_random", "dataloader"])
def test_a_peer_reads_every_sample(name: str, folder: Path, figures: dict[str, Any], programs: dict[str, ModuleType]) -> None:
    mix = folder / "peers"
    paths = programs["survey_mix"].write_mix(mix, 60, 128)
    programs["survey_mix"].write_flat(paths, mix / "flat")
    offsets = np.load(mix / "flat" / "offsets.npy")
    assert programs["peers"].prepare(name, mix) == {}
    found = programs["processes"].measured("peers.py", "read", name, mix)
    assert (found["spectra"], found["samples"]) == (60, offsets[-1]) and found["seconds"] > 0


def test_the_flat_arrays_hold_the_shards(folder: Path, programs: dict[str, ModuleType]) -> None:
    mix = folder / "flat"
    paths = programs["survey_mix"].write_mix(mix, 20, 128)
    programs["survey_mix"].write_flat(paths, mix / "flat")
    flux, ivar, wavelength, offsets = programs["peers"].flat(mix)
    ones = [one for path in paths for one, *_ in stored(path)]
    assert len(ones) == len(offsets) - 1
    for one, a, b in zip(ones, offsets[:-1], offsets[1:], strict=True):
        for array, name in ((flux, "flux"), (ivar, "ivar"), (wavelength, "wavelength")):
            assert np.array_equal(array[a:b], np.concatenate([getattr(arm, name) for arm in one.arms]).astype(np.float32))


def test_a_missing_library_is_said(folder: Path, programs: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "h5py" in programs["peers"].prepare("h5py_random", folder)["skipped"]


def test_a_failing_process_says_why(programs: dict[str, ModuleType], folder: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 1(?s:.*)KeyError: 'nothing'"):
        programs["processes"].measured("rank.py", "nothing", folder)


def test_the_page_cache_is_seen(programs: dict[str, ModuleType], tmp_path: Path) -> None:
    file = tmp_path / "some"
    file.write_bytes(bytes(1 << 22))
    assert programs["processes"].cached([file]) == 1


def test_the_multimodal_layout_is_the_readers(tmp_path: Path, programs: dict[str, ModuleType]) -> None:
    survey = "sdss"
    simulate(tmp_path / "fits", {survey: 3}, seed=1)
    ingest(survey, tmp_path / "fits" / survey, tmp_path / "shards", 128)
    (path,) = shard_paths(tmp_path / "shards")
    with Shard.open(path) as shard:
        objects = shard.objects()
    programs["disk"].write_multimodal(tmp_path / "mmu", survey, [objects])
    found = [one for source in discover(survey, tmp_path / "mmu") for one in read(survey, source)]
    assert len(found) == 3
    for one, (original, *_) in zip(found, stored(path), strict=True):
        assert isinstance(one, Observation) and one.object_id == original.object_id
        good = [np.concatenate([a.flux[a.ivar > 0] for a in of.arms]) for of in (one, original)]
        assert np.array_equal(*good)


def test_the_model_s_figures_are_all_there(folder: Path) -> None:
    """But those that need a GPU or the peer's package."""
    out = folder / "model.json"
    command = [sys.executable, str(BENCHMARKS / "model.py"), "--json", str(out), "--folder", str(folder / "model"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert {"packed_vs_padded", "deepspeed_overhead", "train_spectra_s", "embed_spectra_s"} <= set(found)
    assert not {"embed_vs_aion_codec", "mfu_base"} & set(found)
    assert found["packed_vs_padded"] > 1 and found["train_spectra_s"] > 0 and found["embed_spectra_s"] > 0


def test_padded_batches_hold_as_many_objects_of_the_longest_length(programs: dict[str, ModuleType], folder: Path) -> None:
    model = programs["model"]
    shards = programs["survey_mix"].write_mix(folder / "padded", 80, 16)
    (batch,) = model.packs_of(shards, 4096, 1, torch.device("cpu"))
    filled = model.padded(batch)
    assert len(filled) == len(batch) and set(filled.lengths) == {max(batch.lengths)}
    share = [float(b.hidden.float().mean()) for b in (batch, filled)]
    assert share[1] == pytest.approx(share[0], abs=0.02)
    tiny = model.Unified(model.Model(width=16, layers=1, decoder_layers=1, heads=2, frequencies=4), model.WORDS)
    assert torch.isfinite(tiny(filled)["loss"])
