"""One array task of a catalogue: `python jobs/catalog.py --run RUN --survey NAME` under `sbatch --array=0-N`.

It may be killed and run again at any moment; the pieces that are finished are left alone.
"""

import argparse
import os
import sys

from hpcspec.cluster.stages import job


def main() -> int:
    """Write the parts of this task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--survey", required=True)
    parser.add_argument("--task", type=int, default=os.environ.get("SLURM_ARRAY_TASK_ID", 0), help="default: the array task")
    parser.add_argument("--tasks", type=int, default=os.environ.get("SLURM_ARRAY_TASK_COUNT"), help="default: catalog.tasks")
    parser.add_argument("--input", help="folder with the survey's files, if not the configured one")
    parser.add_argument("--output", help="catalogue folder of --input")
    args = parser.parse_args()
    return job("catalog", args.run, task=args.task, tasks=args.tasks, survey=args.survey, source=args.input, output=args.output)


if __name__ == "__main__":
    sys.exit(main())
