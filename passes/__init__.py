"""Passes over onnx_ir models: clean, calibrate, quantize."""
