"""Survey spectra in, one pretrained foundation model and a published value-added catalogue out."""

__version__ = "0.1.0"
