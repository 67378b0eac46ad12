"""Passes over onnx_ir models: clean, calibrate, compress, quantize."""
