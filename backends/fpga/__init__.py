"""FPGA backend: fold -> layout -> schedule -> allocate -> assemble -> emit."""
