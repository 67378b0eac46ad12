"""Float networks on processors: kernels of our own where speed is, TVM's operators for everything else."""
