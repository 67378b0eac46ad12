"""The clean-up: what exporters write, in canonical form."""
