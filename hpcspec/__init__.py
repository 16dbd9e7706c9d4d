"""Survey spectra in, one pretrained foundation model and a published value-added catalogue out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcspec.trained import light_curve, load, observations, scalars, spectrum, together

__all__ = ["light_curve", "load", "observations", "scalars", "spectrum", "together"]
__version__ = "0.1.0"

# Read when torch loads OpenMP: threads that wait sleep instead of spinning. On a machine that others use too, spinning threads
# of one process take the cores that its own other threads need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    """`hpcspec.load` and the like, which import torch, when they are asked for."""
    if name in __all__:
        from hpcspec import trained

        return getattr(trained, name)
    raise AttributeError(f"module 'hpcspec' has no attribute {name!r}")
