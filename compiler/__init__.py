"""The front door: from an ONNX file to a verified artefact."""
