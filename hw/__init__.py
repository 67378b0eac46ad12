"""The accelerator: Amaranth components, their configuration and their instruction set."""
