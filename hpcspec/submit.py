"""The command line: `python -m hpcspec.submit VERB`. Every verb finds out what is missing and submits only that."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hpcspec.cluster.executors import JobFailed, Step, run_here, sbatch_text, submit_slurm
from hpcspec.cluster.run import Release, Run, newest_trained, release
from hpcspec.cluster.site import default_executor, load_site
from hpcspec.cluster.stages import adapt_key, has_head, ingested, merge_key, pretrain_key, simulate_key, survey_settings
from hpcspec.cluster.summary import show_status, show_summary
from hpcspec.config import Config
from hpcspec.config import Survey as SurveySection
from hpcspec.config_files import load, load_survey
from hpcspec.errors import UserError
from hpcspec.surveys import SURVEYS, reader
from hpcspec.surveys import labels as own_labels

RUNS = Path("runs")
FAILED, USER_MISTAKE, INTERRUPTED = 1, 2, 130


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    top = argparse.ArgumentParser(prog="python -m hpcspec.submit", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--run", type=Path, help="run folder (default: runs/<name of the configuration>, or the newest trained run)"
    )
    common.add_argument("--executor", choices=["slurm", "local", "debug"],
                        help="who runs the jobs (default: slurm where it answers, else local)")  # fmt: skip
    common.add_argument("--site", help="name in configs/sites or a YAML file (default: $HPCSPEC_SITE, else default)")
    common.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a key of the configuration")
    common.add_argument("--dry-run", action="store_true", help="print the exact sbatch scripts, submit and write nothing")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for verb, text in {
        "pipeline": "everything, from survey files to the published catalogue",
        "plan": "what pipeline would do; writes nothing",
        "prepare": "write the run folder's configuration and nothing else; the templates in slurm/ start with it",
        "ingest": "survey files to shards",
        "pretrain": "shards to a pretrained model",
        "adapt": "heads for classes and parameters",
    }.items():
        sub = verbs.add_parser(verb, parents=[common], help=text, description=text)
        sub.add_argument("--config", type=Path, help="pipeline configuration (default: that of --run)")
        sub.add_argument("--survey", help=f"instead of --config: this survey alone ({', '.join(SURVEYS)}, or one of an installed "
                                          "package), as configs/pipelines says, or with the defaults of everything")  # fmt: skip
        sub.add_argument("--input", type=Path, help="folder with the survey's files")
        sub.add_argument("--labels", type=Path, help="label table (CSV, FITS or Parquet)")
        sub.add_argument("--pretrained", type=Path, metavar="RUN",
                         help="take the pretrained model of this run instead of training one")  # fmt: skip
    for verb, text in {
        "catalog": "array job and merge: the catalogue of a survey's files with a trained run",
        "merge": "merge and validate the parts of a catalogue",
    }.items():
        sub = verbs.add_parser(verb, parents=[common], help=text, description=text)
        sub.add_argument("--survey", required=True, help=f"{', '.join(SURVEYS)}, or one of an installed package")
        sub.add_argument("--input", type=Path, help="folder with the survey's files (default: the run's)")
        sub.add_argument("--output", type=Path, help="where to publish (default: in the run folder)")
    status = verbs.add_parser("status", help="how far a run is", description="how far a run is")
    status.add_argument("run", type=Path, nargs="?", help="run folder (default: the newest trained one)")
    check = verbs.add_parser(
        "validate", help="check a published catalogue", description="check a published catalogue, line by line"
    )
    check.add_argument("folder", type=Path)
    doctor = verbs.add_parser("doctor", help="check shards", description="check the checksums and books of shards")
    doctor.add_argument("folder", type=Path)
    for sub in (status, check, doctor):
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def configuration(args: argparse.Namespace) -> tuple[Run, Config]:
    """The run and configuration that a verb works on, with --input, --labels and --pretrained applied."""
    if args.config and args.survey:
        raise UserError("give --config or --survey, not both")
    if args.survey:
        reader(args.survey)
        config = load_survey(args.survey, args.set)
    elif args.config:
        config = load(args.config, args.set)
    elif args.run:
        Run(args.run).config()
        config = load(Run(args.run).config_path, args.set)
    else:
        raise UserError("give --config (a file in configs/pipelines), --survey (a name) or --run (a run folder)")
    run = Run(args.run or RUNS / config.name)
    if args.input or args.labels:
        if len(config.surveys) != 1:
            raise UserError(f"--input and --labels are for a pipeline of one survey; this one has {', '.join(config.surveys)}: "
                            "use --set surveys.NAME.input=DIR")  # fmt: skip
        if args.labels and not args.labels.is_file():
            raise UserError(f"label table {args.labels} does not exist")
        surveys = {name: _at(survey, args.input, args.labels) for name, survey in config.surveys.items()}
        config = config.model_copy(update={"surveys": surveys})
    if config.simulate:
        folder = (run.path / "simulated").resolve()
        made = {n: _at(config.surveys[n], folder / n, folder / n / "labels.csv") for n in config.simulate}
        config = config.model_copy(update={"surveys": {**config.surveys, **made}})
    if args.pretrained:
        config = config.model_copy(update={"pretrained": str(args.pretrained.resolve())})
    if config.pretrained:
        from hpcspec.model.weights import described  # torch takes seconds to import

        config = config.model_copy(update={"model": described(run.pretrained_elsewhere(config.pretrained)).config})
    return run, config


def _at(survey: SurveySection, folder: Path | None, labels: Path | None) -> SurveySection:
    """The survey with its files and its label table there, where they are given."""
    if labels:
        survey = survey.model_copy(update={"labels": survey.labels.model_copy(update={"path": str(labels.resolve())})})
    return survey.model_copy(update={"input": str(folder.resolve())}) if folder else survey


def check_inputs(config: Config, labels: bool) -> None:
    """Refuse what can't work before anything is queued."""
    from hpcspec.adapt.labels import check_labels

    for name, survey in config.surveys.items():
        reader(name)
        if name in config.simulate:
            continue
        if not survey.input or survey.input.startswith("$"):
            raise UserError(
                f"where are the {name} files? Give --input, or set surveys.{name}.input (it is {survey.input or 'empty'})"
            )
        if not Path(survey.input).is_dir():
            raise UserError(f"input folder {survey.input} of {name} does not exist")
        table = survey.labels.path
        if table and not Path(table).is_file():
            raise UserError(f"label table {table} of {name} does not exist: give --labels")
        if labels:
            check_labels(name, survey.labels, own_labels(name, Path(survey.input)))


def _ingest_steps(config: Config, arguments: dict[str, str]) -> list[Step]:
    """The job that makes shards of a survey's files, after an array that reads them if the configuration wants one."""
    reading = [Step("read", arguments, config.ingest.array)] if config.ingest.array else []
    return [*reading, Step("ingest", arguments)]


def training_steps(run: Run, config: Config, last: str) -> list[Step]:
    """The steps up to `last` (ingest, pretrain or adapt) that are not done. A step after one that isn't done isn't either."""
    steps: list[Step] = []
    if config.simulate and not run.done("simulate", simulate_key(config)):
        steps.append(Step("simulate"))
    for name in config.surveys:
        if steps or not ingested(run, config, release(run, config, name)):
            steps += _ingest_steps(config, {"survey": name})
    if last == "ingest":
        return steps
    if not config.pretrained and (steps or not run.done("pretrain", pretrain_key(run, config))):
        steps.append(Step("pretrain"))
    if last == "adapt" and (steps or not run.done("adapt", adapt_key(run, config))):
        steps.append(Step("adapt"))
    return steps


def catalog_steps(
    run: Run, config: Config, work: Release, before: bool, arguments: dict[str, str], fresh_input: bool
) -> list[Step]:
    """The steps from files to the published catalogue that are not done."""
    named = {"survey": work.survey, **arguments}
    steps = []
    if fresh_input and not ingested(run, config, work):
        steps += _ingest_steps(config, named)
    published = (work.out / f"hpcspec-{work.survey}.fits").is_file() and (work.out / "SHA256SUMS").is_file()
    if before or steps or not published or not run.done(work.marker("merge"), merge_key(run, config, work)):
        steps += [Step("catalog", named, config.catalog.tasks), Step("merge", named)]
    return steps


def execute(args: argparse.Namespace, run: Run, config: Config, steps: list[Step]) -> None:
    """Print, submit or run the steps."""
    site = load_site(args.site)
    if args.dry_run:
        for step in steps:
            print(f"# {step.name}\n{sbatch_text(step, run, site, ['JOB_BEFORE'] if step is not steps[0] else [])}")
        return
    if not steps:
        print("everything is done already")
        return
    kind = args.executor or default_executor()
    if kind == "slurm":
        if not shutil.which("sbatch"):
            raise UserError("there is no sbatch here: use --executor local, or log in to the cluster")
        for step, job in submit_slurm(steps, run, site):
            print(f"submitted {step.name} as job {job}" + (f" ({step.tasks} array tasks)" if step.tasks else ""))
        print(f"follow it with: python -m hpcspec.submit status {run.path}")
    else:
        run_here(steps, run, config, kind)


def pipeline(args: argparse.Namespace) -> None:
    """The verbs pipeline, plan, ingest, pretrain, adapt."""
    run, config = configuration(args)
    check_inputs(config, labels=args.verb in ("pipeline", "plan", "adapt"))
    began = time.monotonic()
    if not args.dry_run and args.verb != "plan":
        run.create(config)
        if config.pretrained:
            run.take_pretrained(config.pretrained)
    if args.verb == "prepare":
        return
    steps = training_steps(run, config, {"ingest": "ingest", "pretrain": "pretrain"}.get(args.verb, "adapt"))
    if args.verb in ("pipeline", "plan"):
        for name in config.surveys:
            steps += catalog_steps(run, config, release(run, config, name), bool(steps), {}, False)
    if args.verb == "plan":
        print(
            f"run {run.path}: "
            + (", ".join(f"{s.name}{f' × {s.tasks}' if s.tasks else ''}" for s in steps) or "everything is done")
        )
        return
    execute(args, run, config, steps)
    kind = args.executor or default_executor()
    if args.verb == "pipeline" and not args.dry_run and (kind != "slurm" or not steps):
        show_summary(run, config, time.monotonic() - began)


def catalog(args: argparse.Namespace) -> None:
    """The verbs catalog and merge."""
    from hpcspec.catalog.merge import check_folder

    reader(args.survey)
    if args.run is None:
        run = newest_trained(RUNS)
        print(f"taking the newest trained run: {run.path}")
    else:
        run = Run(args.run)
    trained = run.config()
    config = load(run.config_path, args.set)
    if added := set(config.surveys) - set(trained.surveys):
        raise UserError(f"--set surveys.{min(added)}: {run.path} was trained without it, and its surveys stay as they are")
    if args.survey not in config.surveys and not args.input:
        configured = survey_settings(config, args.survey).input or ""
        source = os.path.expandvars(configured)
        if not source or "$" in source:
            raise UserError(f"{run.path} was not trained on {args.survey}, whose configured input is {configured or 'empty'}: "
                            "give --input")  # fmt: skip
        args.input = Path(source)
    work = release(run, config, args.survey, str(args.input) if args.input else None, str(args.output) if args.output else None)
    if not work.source.is_dir():
        raise UserError(f"input folder {work.source} does not exist: give the folder with the {args.survey} files with --input")
    print(f"catalogue of {args.survey} files in {work.source}, to {work.out}")
    if not run.weights.is_file():
        raise UserError(f"{run.path} is not trained: run pretrain first")
    if not args.dry_run:
        try:
            work.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't write to {work.out}: {error.strerror}: give another --output") from error
        check_folder(work.out, args.survey)
        if not os.access(work.out, os.W_OK):
            raise UserError(f"can't write to {work.out}: permission denied: give another --output")
        if args.set:
            run.create(config)  # the jobs read it there
    arguments = {} if work.own else {"source": str(work.source), "output": str(work.out)}
    steps = [Step("merge", {"survey": args.survey, **arguments})]
    if args.verb == "catalog":
        if work.own and run.done(work.marker("ingest")) and not ingested(run, config, work):
            raise UserError(f"the {args.survey} files in {work.source} are not those that {run.path} was trained on: name them "
                            "with --input and publish with --output, or train again with pipeline")  # fmt: skip
        steps = [] if has_head(run) else [Step("adapt")]
        if steps:
            check_inputs(config, labels=True)
        steps += catalog_steps(run, config, work, bool(steps), arguments, not work.own)
    execute(args, run, config, steps)
    done = run.done(work.marker("merge"))
    if done and (work.out / "SHA256SUMS").is_file() and not args.dry_run:
        print(f"{done['rows']} rows, {done['quarantined']} quarantined: {work.out / f'hpcspec-{args.survey}.fits'}")


def status(args: argparse.Namespace) -> None:
    """The verb status."""
    run = Run(args.run) if args.run else newest_trained(RUNS)
    show_status(run, run.config())


def validate(args: argparse.Namespace) -> int:
    """The verb validate: exit code 1 if a check fails."""
    from hpcspec.catalog.validate import report
    from hpcspec.catalog.validate import validate as checks

    return 0 if report(checks(args.folder)) else FAILED


def doctor(args: argparse.Namespace) -> int:
    """The verb doctor: exit code 1 if a shard is damaged."""
    from hpcspec.shards.doctor import examine

    return 0 if examine(args.folder) else FAILED


VERBS = {"pipeline": pipeline, "prepare": pipeline, "plan": pipeline, "ingest": pipeline, "pretrain": pipeline, "adapt": pipeline,
         "catalog": catalog, "merge": catalog, "status": status, "validate": validate, "doctor": doctor}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns 0, 1 for a failed job or check, 2 for a mistake of the user's, 130 when interrupted."""
    args = parser().parse_args(arguments)
    try:
        if "site" in args:  # its environment says where the surveys' files are
            for name, value in load_site(args.site).environment.items():
                os.environ.setdefault(name, value)
        return VERBS[args.verb](args) or 0
    except UserError as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return USER_MISTAKE
    except JobFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # jobs on this machine end with it
    sys.exit(main())
