#!/usr/bin/env bash
# Install, on Debian and as root, the cluster software the tests run on: Slurm with accounting, MPI, parallel HDF5.
# No service is started or enabled to run now, and packages that are there already are left as they are.
set -euo pipefail

packages=(
    slurm-wlm slurmdbd slurm-wlm-basic-plugins slurm-wlm-mysql-plugin mariadb-server munge # the batch system and its accounts
    openmpi-bin libopenmpi-dev libpmix2 libpmix-dev                                       # MPI, and how srun starts it
    libhdf5-openmpi-dev hdf5-tools gcc libc6-dev                                          # parallel HDF5, and what h5py compiles with
)
say() { echo "[install-system] $*"; }

if ! command -v apt-get >/dev/null; then
    say "skipped: no apt-get here; the cluster tests want Slurm, munge, Open MPI, PMIx and parallel HDF5"
    exit 0
fi
python_headers=$("${PYTHON:-python3}" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -f "$python_headers/Python.h" ] || packages+=(python3-dev)

wanted=()
for package in "${packages[@]}"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || wanted+=("$package")
done
if [ ${#wanted[@]} = 0 ]; then
    say "everything is installed"
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    say "skipped: not root; missing: ${wanted[*]}"
    exit 0
fi

say "installing ${wanted[*]}"
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # run level 1: the packages' daemons are not started
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ apt-get update -q || true; apt-get install -q -y --no-install-recommends "${wanted[@]}"; } >"$log" 2>&1 </dev/null || {
    tail -n 20 "$log" >&2
    say "apt-get failed" >&2
    exit 1
}
say "done"
