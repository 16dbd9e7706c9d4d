"""A small model of `tests.making.WORDS`, and objects with every set of measurements."""

from __future__ import annotations

import torch

from hpcspec.config import Model
from hpcspec.model.unified import Unified, set_standards
from hpcspec.stream.vocabulary import PERIOD, Vocabulary
from hpcspec.surveys.observation import Observation
from tests.making import WORDS, curve, spectrum, star

SMALL = Model(patch=8, epochs=4, width=32, layers=2, decoder_layers=2, heads=4, frequencies=16, dropout=0.1)
KNOWN = {"level R mag": (14, 0.1), "level V mag": (14, 0.1), "log10_amplitude R mag": (-0.7, 0.2), "parallax": (3, 3),
         "log10_amplitude V mag": (-0.7, 0.2), "teff": (5000, 50), "log10_flux_scale": (1, 0.1), "log10_sn": (1.5, 0.1),
         PERIOD: (0, 0.3)}  # fmt: skip
OBJECTS: list[Observation] = [
    star(1), spectrum(2, ("log10", "linear"), 24), spectrum(3, (), curves=(curve(3, 21),)), star(4, 90, 30),
    spectrum(5, (), scalars={"teff": (5050.0, 30.0), "parallax": (2.0, 0.1)}), star(6, 24, 8),
    spectrum(7, pixels=40, curves=(curve(7, 12, "R"),)), spectrum(8, pixels=56, scalars={"teff": (4950.0, 30.0)}),
    spectrum(9, (), curves=(curve(9, 9),), scalars={PERIOD: (0.4, 0.01)}), spectrum(10, pixels=40),
]  # fmt: skip
BY_KIND = {"spectra": [spectrum(i, pixels=24 + 8 * i) for i in range(4)],
           "curves": [spectrum(i, (), curves=(curve(i, 9 + 3 * i), curve(i, 5, "R"))) for i in range(4)],
           "scalars": [spectrum(i, (), scalars={"teff": (4900.0 + 50 * i, 9.0), "parallax": (i, 0.1)}) for i in range(4)],
           "all": OBJECTS}  # fmt: skip


def made(seed: int = 0, of: Vocabulary = WORDS, checkpointing: bool = False, **changed: float) -> Unified:
    """A model with standards that fit `star`."""
    torch.manual_seed(seed)
    model = Unified(SMALL.model_copy(update=changed), of, checkpointing)
    pairs = [KNOWN.get(name, (0, 1)) for name in of.names]
    center, spread = torch.tensor(pairs, dtype=torch.float32).T
    set_standards(model, (center, spread, torch.zeros(len(pairs))))
    return model.eval()


def randomised(model: Unified) -> Unified:
    """In double precision and with no weight near zero, so that nothing is equal by accident."""
    rng = torch.Generator().manual_seed(1)
    model = model.double()
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=rng, dtype=torch.float64)
    return model
