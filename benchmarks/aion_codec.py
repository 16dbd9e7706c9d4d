"""The spectrum codec of polymathic-aion, in a process of its own: a program for `processes.Measuring`.

    aion_codec.py FOLDER    encodes the spectra in FOLDER (*.npy: wavelength, flux, ivar), one survey's length in a batch

Nothing of hpcspec is used. Without the package it answers with {"skipped": reason}.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from processes import serve

BATCH = 8


def measure(folder: str) -> dict[str, Any]:
    try:
        import torch
        from aion.codecs import SpectrumCodec
        from aion.modalities import Spectrum
    except ImportError as error:
        return {"skipped": str(error)}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    codec = SpectrumCodec(encoder_dims=(96, 192, 384, 512), decoder_dims=(384, 192, 96, 1), embedding_dim=10).eval()
    spectra = [torch.from_numpy(np.load(path)) for path in sorted(Path(folder).glob("*.npy"))]
    spectra.sort(key=lambda s: s.shape[1])

    def encode(some: list[Any]) -> None:
        shortest = min(s.shape[1] for s in some)  # the codec wants a batch of one length
        wavelength, flux, ivar = torch.stack([s[:, :shortest] for s in some], dim=1)
        codec.encode(Spectrum(flux=flux, ivar=ivar, mask=ivar == 0, wavelength=wavelength))

    with torch.inference_mode():
        encode(spectra[:1])
        began = time.monotonic()
        for start in range(0, len(spectra), BATCH):
            encode(spectra[start : start + BATCH])
        return {"spectra_s": len(spectra) / (time.monotonic() - began)}


if __name__ == "__main__":
    serve(lambda: measure(sys.argv[1]))
