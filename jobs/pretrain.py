"""Pretraining, inside an allocation: `srun --mpi=pmix python jobs/pretrain.py --run RUN`, one task per GPU.

It goes on from the newest checkpoint; exit code 75 means: stopped after saving, submit again.
"""

import argparse
import sys

from hpcspec.cluster.stages import job


def main() -> int:
    """Train the run's model on all tasks of this job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="run folder")
    return job("pretrain", parser.parse_args().run)


if __name__ == "__main__":
    sys.exit(main())
