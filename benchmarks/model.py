"""How fast the model trains and embeds, beside what a user would run instead, in one run.

    python benchmarks/model.py --json OUT [--folder DIR] [--peer-python PYTHON] [--rounds 3] [--quick]

- packed_vs_padded: spectra/s of training on the four-survey mix in packs, over those of the same model and objects in batches
  that are filled up to their longest object (with real patches, without a mask: a padded batch costs at least that).
- deepspeed_overhead: seconds of a step of DeepSpeed's engine at one rank over a plain loop's with the same model, optimizer,
  clipping and batches, minus 1.
- embed_vs_aion_codec: spectra/s of embedding simulated SDSS and DESI spectra with `small`, over those of the spectrum codec of
  polymathic-aion (random weights, 18.7 M parameters in its encoder), its own preprocessing included. PYTHON is one that has
  the package; without it the key is absent.
- train_spectra_s, embed_spectra_s, and on a GPU mfu_small, mfu_base, mfu_large: bf16 FLOPs of the blocks over the peak.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processes import Measuring
from survey_mix import write_mix
from torch import nn

from hpcspec.config import Config, Model, Training
from hpcspec.config_files import config_folder, read_yaml
from hpcspec.model.unified import Unified
from hpcspec.stream.batch import Batch, Patches
from hpcspec.stream.batches import ordered_batches, training_batches
from hpcspec.stream.index import open_index
from hpcspec.stream.standards import Standards
from hpcspec.stream.stream import Stream
from hpcspec.stream.tokens import Hiding
from hpcspec.stream.vocabulary import OBJECT, Vocabulary
from hpcspec.training import engine as ds
from hpcspec.training.ranks import start

PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense FLOP/s, the vendor's data sheets
WORDS = Vocabulary()


def named(size: str) -> Model:
    """The configuration of a named size."""
    return Model(**read_yaml(config_folder() / "models" / f"{size}.yaml"))


def packs_of(shards: Sequence[Path], budget: int, count: int, device: torch.device) -> list[Batch]:
    """Batches of the mix as training gets them."""
    training = Training()
    stream = Stream(open_index(shards), 1, 4, training.block, training.shuffle_blocks, vocabulary=WORDS)
    batches = training_batches(stream, budget, Hiding(*training.masks, 0.0, 1), 1, device)
    found = list(islice(batches, count))
    batches.close()
    return found


def padded(batch: Batch) -> Batch:
    """The same objects, all spectra, each filled up to the longest with patches of the batch; as large a share is hidden."""
    n, longest, count, device = len(batch), max(batch.lengths), len(batch.scalars.name), batch.order.device
    scalars = batch.order[batch.order < count].reshape(n, -1)
    each = longest - scalars.shape[1]
    places = torch.arange(n * each, device=device)
    spectra = Patches(*(x[places % len(x)] for x in batch.spectra))
    kind = torch.ones(n, longest, dtype=torch.long, device=device)
    kind[:, 0] = OBJECT
    hidden = torch.zeros(n, longest, dtype=torch.bool, device=device)
    hidden[:, -round(each * float(batch.hidden.float().mean())) :] = True
    order = torch.cat([scalars, count + places.reshape(n, each)], dim=1)
    return replace(batch, spectra=spectra, order=order.flatten(), kind=kind.flatten(), hidden=hidden.flatten(),
                   lengths=(longest,) * n)  # fmt: skip


def stepper(model: Unified, training: Training) -> Callable[[Batch], None]:
    """A training step in a plain loop."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: ds.learning_rate(training, step))

    def step(batch: Batch) -> None:
        model(batch, training.summary_share)["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[Batch], Any], batches: Sequence[Batch]) -> float:
    """Of a step over each of these batches."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.monotonic()
    for batch in batches:
        step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - began


def alternating(works: Sequence[tuple[Callable[[Batch], Any], Sequence[Batch]]], rounds: int) -> list[list[float]]:
    """Seconds of each of some pieces of work, one after another, `rounds` times; one step of each before is not measured."""
    for step, batches in works:
        step(batches[0])
    return [list(of) for of in zip(*([seconds(*work) for work in works] for _ in range(rounds)), strict=True)]


def training_figures(shards: Sequence[Path], size: str, budget: int, steps: int, rounds: int) -> dict[str, Any]:
    """packed_vs_padded, deepspeed_overhead, train_spectra_s."""
    ranks = start(len(os.sched_getaffinity(0)))
    batches = packs_of(shards, budget, steps, ranks.device)
    filled = [padded(b) for b in batches]
    training = Training()
    torch.manual_seed(1)
    model = Unified(named(size), WORDS).to(ranks.device).train()
    config = Config(name="benchmark", surveys={"sdss": {}}, model=named(size), training=Training(steps=10**6))  # type: ignore[dict-item]
    names = len(WORDS.names)
    engine = ds.build(config, WORDS, Standards(np.zeros(names), np.ones(names), np.zeros(names)), ranks)

    def with_engine(batch: Batch) -> None:
        engine.backward(engine(batch, training.summary_share)["loss"])
        engine.step()

    engine.train()
    plain = stepper(model, training)
    packed, full, deepspeed = alternating([(plain, batches), (plain, filled), (with_engine, batches)], rounds)
    spectra = sum(map(len, batches))
    ratios = [b / a for a, b in zip(packed, full, strict=True)]
    overheads = [c / a - 1 for a, c in zip(packed, deepspeed, strict=True)]
    return {"packed_vs_padded": statistics.median(ratios), "packed_vs_padded_rounds": ratios,
            "deepspeed_overhead": statistics.median(overheads), "deepspeed_overhead_rounds": overheads,
            "train_spectra_s": spectra / statistics.median(packed), "train_model": size}  # fmt: skip


def embedding_figures(shards: Sequence[Path], peer: str | None, count: int, rounds: int) -> dict[str, Any]:
    """embed_vs_aion_codec and embed_spectra_s, over SDSS and DESI spectra."""
    chosen = [p for p in shards if p.name.startswith(("sdss", "desi"))]
    index = open_index(chosen)
    rng = np.random.default_rng(0)
    numbers = np.sort(rng.choice(len(index), min(count, len(index)), replace=False))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Unified(named("small"), WORDS).to(device).eval()

    def embed() -> float:
        began = time.monotonic()
        with torch.inference_mode():
            for batch in ordered_batches(index, numbers, WORDS, 8192):
                model.summary(model.encode(batch.to(device)))
        return len(numbers) / (time.monotonic() - began)

    embed()
    out: dict[str, Any] = {}
    if peer is not None:
        with tempfile.TemporaryDirectory() as folder:
            _write_for_peer(Path(folder), index, numbers)
            pairs = []
            for _ in range(rounds):
                ours, other = embed(), Measuring("aion_codec.py", folder, python=peer).ready().go().figures()
                if "skipped" in other:
                    out["embed_vs_aion_codec_skipped"] = other["skipped"]
                    break
                pairs.append((ours, other["spectra_s"]))
        if pairs:
            out |= {"embed_vs_aion_codec": statistics.median(a / b for a, b in pairs), "embed_vs_aion_codec_pairs": pairs}
    return {"embed_spectra_s": statistics.median(embed() for _ in range(rounds)), **out}


def _write_for_peer(folder: Path, index: Any, numbers: np.ndarray) -> None:
    """A file for each spectrum, which the codec gets as its users have it: flux, ivar, mask and wavelength (n,)."""
    from hpcspec.stream.batches import in_order

    for some, objects in in_order(index, numbers):
        for i, number in enumerate(some.tolist()):
            arms = objects.arms(i)
            wavelength, flux, ivar = (np.concatenate([arm[k] for arm in arms]) for k in range(3))
            order = np.argsort(wavelength, kind="stable")
            np.save(folder / f"{number:08d}.npy", np.stack([wavelength, flux, ivar])[:, order].astype(np.float32))


def mfu(size: str, shards: Sequence[Path], budget: int) -> dict[str, float]:
    """FLOPs of a bf16 training step (6 per weight of a block and token it meets) over the peak, and what goes with them."""
    device = torch.device("cuda")
    peak = next((v for k, v in PEAK_BF16.items() if k in torch.cuda.get_device_name()), None)
    if peak is None:
        return {}
    torch.cuda.reset_peak_memory_stats()
    model = Unified(named(size), WORDS).to(device).bfloat16().train()
    batches = packs_of(shards, budget, 8, device)
    step = stepper(model, Training())
    took = min(alternating([(step, batches)], 3)[0]) / len(batches)
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder))
    tokens = sum(sum(b.lengths) for b in batches) / len(batches)
    hidden = sum(int(b.hidden.sum()) for b in batches) / len(batches)
    flops = 6 * (encoder * (tokens - hidden) + decoder * hidden * (1 + Training().summary_share))
    spectra = sum(map(len, batches)) / len(batches)
    return {f"mfu_{size}": flops / took / peak, f"train_spectra_s_{size}": spectra / took,
            f"memory_gib_{size}": torch.cuda.max_memory_allocated() / 2**30}  # fmt: skip


def figures(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures, as they come."""
    folder = options.folder or Path(tempfile.mkdtemp(prefix="hpcspec-benchmark-"))
    shards = write_mix(folder / "mix", 400 if options.quick else 4000, 64)
    steps, rounds, budget = (2, 1, 2048) if options.quick else (8, options.rounds, 8192)
    yield training_figures(shards, "nano", budget, steps, rounds)
    yield embedding_figures(shards, options.peer_python, 8 if options.quick else 128, rounds)
    if torch.cuda.is_available():
        for size in ("small", "base", "large"):
            yield mfu(size, shards, 1 << 17)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--folder", type=Path, help="where the shards are made, and found again")
    parser.add_argument("--peer-python", help="a Python that has polymathic-aion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="that it runs, not how fast")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for some in figures(options):
        found |= some
        options.json.write_text(json.dumps(found, indent=1) + "\n")
        for key, value in some.items():
            print(f"{key:28} {value if not isinstance(value, float) else f'{value:.4g}'}", file=sys.stderr)


if __name__ == "__main__":
    main()
