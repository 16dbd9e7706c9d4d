#!/usr/bin/env bash
# Build h5py against the system's parallel HDF5 into VENV/h5py-mpi, beside the serial wheel and not in its place.
# A process that wants it says PYTHONPATH=VENV/h5py-mpi.
#
#   scripts/install-h5py-mpi.sh VENV
#
# MPICC (default: Debian's mpicc.openmpi, else mpicc) and HDF5_DIR (default: Debian's) choose the compiler and the library.
# A build that already works is left as it is.
set -euo pipefail

venv=$(cd "${1:?usage: install-h5py-mpi.sh VENV}" && pwd)
python=$venv/bin/python
target=$venv/h5py-mpi
say() { echo "[install-h5py-mpi] $*"; }

works() {
    PYTHONPATH=$1 "$python" - "$1" <<'PY'
import sys

import h5py, mpi4py.MPI, numpy  # noqa: E401, F401

with h5py.File.in_memory() as file:  # a real write and read: a library that only loads is not enough
    file["x"] = numpy.arange(3)
    ours = file["x"][2] == 2 and h5py.__file__.startswith(sys.argv[1])
sys.exit(0 if ours and h5py.get_config().mpi else 1)
PY
}

version=$("$python" -c "import importlib.metadata as m; print(m.version('h5py'))")
if [ -d "$target/h5py-$version.dist-info" ] && works "$target" 2>/dev/null; then
    say "h5py $version with MPI is already in $target"
    exit 0
fi

export CC=${MPICC:-$(command -v mpicc.openmpi || echo mpicc)}
command -v "$CC" >/dev/null || { say "no $CC: run scripts/install-system.sh as root, or load the site's MPI module" >&2; exit 1; }
if [ -z "${HDF5_DIR:-}" ]; then
    HDF5_DIR=/usr/lib/$("$python" -c "import sysconfig; print(sysconfig.get_config_var('MULTIARCH'))")/hdf5/openmpi
fi
[ -d "$HDF5_DIR" ] || { say "no parallel HDF5 in $HDF5_DIR: set HDF5_DIR, or run scripts/install-system.sh as root" >&2; exit 1; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
jobs=$(getconf _NPROCESSORS_ONLN)
printf '[build_ext]\nparallel = %s\n' "$jobs" >"$scratch/build.cfg"

say "building h5py $version with $CC and $HDF5_DIR on $jobs cores (a minute or two)"
"$python" -m pip install --quiet --target "$scratch/tools" "Cython>=3,<4" pkgconfig "setuptools>=77.0.1" wheel
# No build isolation: it would compile an old mpi4py from source (minutes, gigabytes); the venv's wheel serves as well.
HDF5_MPI=ON HDF5_DIR=$HDF5_DIR CFLAGS="-O1 -g0" DIST_EXTRA_CONFIG=$scratch/build.cfg PYTHONPATH=$scratch/tools \
    "$python" -m pip install --quiet --no-deps --no-build-isolation --no-binary=h5py --no-cache-dir \
    --target "$scratch/h5py-mpi" "h5py==$version"
works "$scratch/h5py-mpi" || { say "the build does not work with the numpy and mpi4py of $venv" >&2; exit 1; }
rm -rf "$target"
mv "$scratch/h5py-mpi" "$target"
say "done: PYTHONPATH=$target"
