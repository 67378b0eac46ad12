"""The host's side of an accelerator: drivers in C and Python, and the network as C arrays."""
