"""Integer layers, the reference arithmetic, and the targets that run them."""
