"""Heads for classes and parameters on the pretrained encoder: `python jobs/adapt.py --run RUN`."""

import argparse
import sys

from hpcspec.cluster.stages import job


def main() -> int:
    """Train, calibrate and measure the heads of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="run folder")
    return job("adapt", parser.parse_args().run)


if __name__ == "__main__":
    sys.exit(main())
