"""Ways of representing the weights of one layer: what each makes of them, and which are worth offering."""
