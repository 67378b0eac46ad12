"""CPU and ARM targets: integer kernels of our own in TIR, machine code by TVM's LLVM, and C around them.

The only folder that imports tvm, and that only where code is generated: running a built network needs none of it.
"""
