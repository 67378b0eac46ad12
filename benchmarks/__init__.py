"""Every figure that edgec claims, measured in one command: python -m benchmarks."""
