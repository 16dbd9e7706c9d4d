"""One rank of several trainings in a row, for the tests: `python -m tests.training.worker FOLDER CASES.json`.

FOLDER/shards holds the data; a case is a name, a configuration, and perhaps a batch that rank 1 gets with NaN in it.
Each case leaves FOLDER/<name>/{metrics.jsonl,checkpoints,weights.safetensors}, or error.txt with the message of a UserError.
"""

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcspec.config import Config
from hpcspec.errors import UserError
from hpcspec.shards.format import shard_paths
from hpcspec.stream.batch import Batch
from hpcspec.training import pretrain as program

deliver = program.training_batches


def poisoned(number: int, rank: int) -> Any:
    """The stream's batches, batch `number` (from 0) full of NaN on that rank."""

    def batches(stream: Any, *rest: Any) -> Iterator[Batch]:
        mine = min(stream.positions) == rank
        for i, batch in enumerate(deliver(stream, *rest)):
            if mine and i == number:
                batch = replace(batch, spectra=batch.spectra._replace(values=batch.spectra.values * float("nan")))
            yield batch

    return batches


def main() -> None:
    folder, cases = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)
    for case in cases:
        out = folder / case["name"]
        out.mkdir(exist_ok=True)
        program.training_batches = poisoned(case["poison"], 1) if case.get("poison") is not None else deliver
        config = Config.model_validate(case["config"])
        checkpoints = folder / case.get("checkpoints", case["name"]) / "checkpoints"
        try:
            shards, metrics, weights = shard_paths(folder / "shards"), out / "metrics.jsonl", out / "weights.safetensors"
            program.pretrain(config, shards, checkpoints, metrics, weights)
        except UserError as error:
            (out / "error.txt").write_text(str(error))


if __name__ == "__main__":
    main()
