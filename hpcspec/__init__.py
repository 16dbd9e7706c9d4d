"""Survey spectra in, one pretrained foundation model and a published value-added catalogue out."""

import os

__version__ = "0.1.0"

# Read when torch loads OpenMP: threads that wait sleep instead of spinning. On a machine that others use too, spinning threads
# of one process take the cores that its own other threads need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
