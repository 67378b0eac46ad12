"""The one definition of the arithmetic: a numpy interpreter of a LayerGraph."""

from backends.reference.interpreter import InputError, run, run_layer

__all__ = ["InputError", "run", "run_layer"]
