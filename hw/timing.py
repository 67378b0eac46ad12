"""Exact cycle counts of the accelerator, shared by the scheduler and the tests."""
