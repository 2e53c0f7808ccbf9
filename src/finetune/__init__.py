"""Transfer learning for image classification: what is frozen is a constant, so it is computed once."""

__version__ = "0.1.0"
