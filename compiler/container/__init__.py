"""model.edgec: an ONNX file in as few bytes as its entropy takes; unpacking gives the same file back, byte for byte."""

from compiler.container.errors import ContainerError
from compiler.container.file import Sizes, pack, pack_with_sizes, sizes, unpack, unpack_with_sizes

__all__ = ["ContainerError", "Sizes", "pack", "pack_with_sizes", "sizes", "unpack", "unpack_with_sizes"]
