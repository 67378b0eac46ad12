"""Numpy models of the hardware components, one per component, same stem."""
