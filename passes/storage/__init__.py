"""Forms in which integers are stored in less, and the ONNX expressions that they are."""
