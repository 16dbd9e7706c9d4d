"""python -m hpcspec.evaluate ROW --output DIR: what a row of the evaluation shows, as Markdown, JSON and PNG."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from hpcspec import __version__
from hpcspec.config_files import config_folder
from hpcspec.errors import UserError
from hpcspec.evaluate import astrom3, discoveries, spectral_tokenizer, stars
from hpcspec.evaluate.inputs import NotMeasured
from hpcspec.evaluate.predict import predict
from hpcspec.evaluate.report import Result, write
from hpcspec.evaluate.spec import Experiment, load_evaluation
from hpcspec.evaluate.workspace import Workspace

log = logging.getLogger("hpcspec.evaluate")
NOWHERE = Path("no-data-folder")
KINDS: dict[str, Callable[[Workspace, Experiment, Result], None]] = {
    "predict": predict,
    "repeats": spectral_tokenizer.repeats,
    "reconstruction": spectral_tokenizer.reconstruction,
    "cross_survey": spectral_tokenizer.cross_survey,
    "modalities": astrom3.modalities,
    "retrieval": astrom3.retrieval,
    "mislabels": discoveries.mislabels,
    "anomalies": discoveries.anomalies,
    "subclasses": discoveries.subclasses,
    "any_to_any": stars.any_to_any,
    "completion": stars.completion,
    "extinction": stars.extinction,
}


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 when the table is written (what is not measured is said in it), 2 for a mistake of the user's,
    130 when interrupted."""
    rows = ", ".join(sorted(p.stem for p in (config_folder() / "evaluations").glob("*.yaml")))
    parser = argparse.ArgumentParser("python -m hpcspec.evaluate", description=__doc__)
    parser.add_argument("row", help=f"{rows}; or a YAML file")
    parser.add_argument("--output", type=Path, required=True, help="folder for tables, pictures and the model's runs")
    parser.add_argument("--data", type=Path, help="folder with the data (default: $HPCSPEC_REAL_DATA)")
    parser.add_argument("--quick", action="store_true", help="tiny models and baselines, one seed: tries the machinery")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a key of the row's YAML")
    parser.add_argument("--only", nargs="+", metavar="EXPERIMENT", help="these experiments alone")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("hpcspec.evaluate").setLevel(logging.INFO)
    try:
        evaluate(args, shlex.join(["python", "-m", "hpcspec.evaluate", *(sys.argv[1:] if argv is None else argv)]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def evaluate(args: argparse.Namespace, command: str) -> None:
    """Do the experiments of a row, one after the other; the tables are written after each."""
    evaluation = load_evaluation(args.row, args.set)
    data = args.data or (Path(os.environ["HPCSPEC_REAL_DATA"]) if os.environ.get("HPCSPEC_REAL_DATA") else None)
    wanted = {n: e for n, e in evaluation.experiments.items() if not args.only or n in args.only}
    if lost := set(args.only or ()) - set(wanted):
        raise UserError(f"no experiment {min(lost)!r}: there are {', '.join(evaluation.experiments)}")
    for name, said in wanted.items():
        if said.kind not in KINDS:
            raise UserError(f"experiments.{name}.kind: unknown {said.kind!r}: known are {', '.join(KINDS)}")
    simulated = any(evaluation.data[said.data].recipes for said in wanted.values())
    if (data is None and not simulated) or (data is not None and not data.is_dir()):
        raise UserError(f"the data folder {data or ''} is not there: give it with --data DIR or in $HPCSPEC_REAL_DATA")
    work = Workspace(evaluation, (data or NOWHERE).resolve(), args.output.resolve(), args.quick)
    work.output.mkdir(parents=True, exist_ok=True)
    row, results = Path(args.row).stem, []
    facts = {"version": __version__, "started": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
             "machine": f"{os.cpu_count()} CPU cores{_gpu()}", "quick": str(args.quick)}  # fmt: skip
    for name, said in wanted.items():
        used = [evaluation.data[d] for d in (said.data, said.other) if d]
        how = "emulated" if any(d.emulated for d in used) else "simulated" if any(d.recipes for d in used) else ""
        title = said.title + (f" ({how}, not observed)" if how else "")
        result = Result(name, title, said.goals)
        results.append(result)
        log.info("%s", name)
        began = time.monotonic()
        try:
            KINDS[said.kind](work, said, result)
        except NotMeasured as reason:
            result.missing.append(str(reason))
        log.info("%s: %.0f s%s", name, time.monotonic() - began, "".join(f"; not measured: {m}" for m in result.missing))
        write(work.output, row, command, facts, results, evaluation.compare)
    print(f"{work.output / f'{row}.md'}")


def _gpu() -> str:
    import torch

    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the model's jobs end with it
    sys.exit(main())
