"""Simulation: golden models, bus drivers, Verilator builds, verdicts."""
