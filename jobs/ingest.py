"""Survey files to shards, inside an allocation: `srun --mpi=pmix python jobs/ingest.py --run RUN`.

Under MPI the ranks share the work; simulated surveys are made first, by one of them.
"""

import argparse
import sys
from pathlib import Path

from hpcspec.cluster.run import Run
from hpcspec.cluster.stages import job
from hpcspec.comm import world


def main() -> int:
    """Ingest one survey of the run, or all; the exit code is that of the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--survey", help="only this one")
    parser.add_argument("--input", help="folder with the survey's files, if not the configured one")
    parser.add_argument("--output", help="catalogue folder whose work/ gets the shards of --input")
    args = parser.parse_args()
    config, comm = Run(Path(args.run)).config(), world()
    code = job("simulate", args.run) if config.simulate and not args.input else 0
    if comm is not None:
        comm.Barrier()
    for survey in [args.survey] if args.survey else config.surveys:
        code = code or job("ingest", args.run, survey=survey, source=args.input, output=args.output)
    return code


if __name__ == "__main__":
    sys.exit(main())
