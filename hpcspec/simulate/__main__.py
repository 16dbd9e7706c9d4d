"""python -m hpcspec.simulate OUT --sdss 700 --desi 700 --apogee 700 --galah 300 --seed 1"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from hpcspec.errors import UserError
from hpcspec.simulate import simulate
from hpcspec.simulate.instruments import INSTRUMENTS


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 when written, 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser("python -m hpcspec.simulate", description="Write synthetic surveys with known truth.")
    parser.add_argument("folder", type=Path, metavar="OUT", help="new folder; each survey gets its own in it")
    for survey in INSTRUMENTS:
        parser.add_argument(f"--{survey}", type=int, default=0, metavar="N", help=f"number of {survey.upper()} objects")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same files (default: 1)")
    args = parser.parse_args(argv)
    counts = {survey: n for survey in INSTRUMENTS if (n := getattr(args, survey))}
    if not counts:
        parser.error("nothing to simulate: give a number of objects, such as --apogee 700")
    console = Console(stderr=True)
    try:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            tasks = {survey: bar.add_task(survey, total=n) for survey, n in counts.items()}
            simulate(args.folder, counts, args.seed, lambda survey, done, _: bar.update(tasks[survey], completed=done))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for survey, n in counts.items():
        print(f"{survey}: {n} objects in {args.folder / survey}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
