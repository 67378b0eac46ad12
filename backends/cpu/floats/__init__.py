"""Float networks on processors: import by TVM, fp32 convolutions, GEMM and pools of our own, everything else by TVM's operators."""
