"""Parts to the published, validated catalogue: `python jobs/merge.py --run RUN --survey NAME`."""

import argparse
import sys

from hpcspec.cluster.stages import job


def main() -> int:
    """Merge and validate the parts of one survey."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--survey", required=True)
    parser.add_argument("--input", help="folder with the survey's files, if not the configured one")
    parser.add_argument("--output", help="catalogue folder of --input")
    args = parser.parse_args()
    return job("merge", args.run, survey=args.survey, source=args.input, output=args.output)


if __name__ == "__main__":
    sys.exit(main())
