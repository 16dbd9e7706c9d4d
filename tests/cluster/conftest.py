"""Fixtures of the tests that run on a real Slurm.

Without root or the packages of scripts/install-system.sh these tests are skipped, saying what is missing; with
HPCSPEC_REQUIRE_CLUSTER=1 that is a failure.
"""

import ctypes.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cluster.testbed import Testbed, clean_environment, missing

H5PY_MPI = Path(sys.prefix) / "h5py-mpi"


def unavailable(reason: str) -> NoReturn:
    """Skip for `reason`, or fail where the cluster is required."""
    if os.environ.get("HPCSPEC_REQUIRE_CLUSTER") == "1":
        pytest.fail(f"{reason} (HPCSPEC_REQUIRE_CLUSTER=1)", pytrace=False)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "testbed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def testbed() -> Iterator[Testbed]:
    """The running four-node cluster; stopped and removed after the last test."""
    if reasons := missing():
        unavailable("no Slurm testbed: " + "; ".join(reasons))
    with tempfile.TemporaryDirectory(prefix="hpcspec-slurm-") as folder:
        bed = Testbed(Path(folder))
        bed.up()
        try:
            yield bed
        finally:
            bed.down()


@pytest.fixture(scope="session")
def slurm(testbed: Testbed) -> dict[str, str]:
    """The whole environment of a subprocess that talks to the testbed: `subprocess.run(["srun", …], env=slurm)`."""
    return clean_environment() | testbed.env


@pytest.fixture
def slurm_here(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> Testbed:
    """The testbed as the Slurm of this very process, for code that calls sbatch and squeue itself (submitit)."""
    environment = clean_environment() | testbed.env
    for key in set(os.environ) - set(environment):
        monkeypatch.delenv(key)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    return testbed


@pytest.fixture(scope="session")
def mpi_env(slurm: dict[str, str]) -> dict[str, str]:
    """`slurm` with the h5py that has parallel HDF5 first on the path (scripts/install-h5py-mpi.sh)."""
    env = slurm | {"PYTHONPATH": os.pathsep.join(filter(None, [str(H5PY_MPI), slurm.get("PYTHONPATH")]))}
    if library := ctypes.util.find_library("mpi"):
        env["MPI4PY_LIBMPI"] = library  # the machine's MPI, as in HDF5, also where a pip wheel of another is installed
    check = "import mpi4py.MPI, h5py; assert h5py.get_config().mpi, 'this h5py has no MPI'"
    done = subprocess.run([sys.executable, "-c", check], env=env, capture_output=True, text=True)
    if done.returncode:
        unavailable(f"no parallel h5py in {H5PY_MPI}: {done.stderr.strip().splitlines()[-1]}")
    return env
