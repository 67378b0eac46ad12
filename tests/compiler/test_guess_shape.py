"""Shapes that are offered for open inputs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from compiler.guess_shape import guess
from compiler.importer import ModelError, import_model
from tests.support.canonical import normal
from tests.support.onnx_models import model, node, save


def classifier(*shape: int | str, side: int = 96) -> onnx.ModelProto:
    """Strided Conv, Flatten, and a Gemm that fits images of one side only."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], strides=[4, 4], kernel_shape=[4, 4]),
        node("Flatten", ["a"], ["b"]),
        node("Gemm", ["b", "d"], ["y"]),
    ]
    return model(nodes, {"x": list(shape)}, ["y"], {"w": normal(2, 3, 4, 4), "d": normal(2 * (side // 4) ** 2, 5)})


@pytest.mark.parametrize("side", [28, 32, 96, 224])
@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), ("n", "c", "h", "w"), ("", "", "", ""), (1, 3, "s", "s")])
def test_the_size_that_the_classifier_fits_is_found(shape: tuple[int | str, ...], side: int) -> None:
    assert guess(classifier(*shape, side=side), "x") == (1, 3, side, side)


def test_images_are_square() -> None:
    assert guess(model([node("Relu", ["x"], ["y"])], {"x": ["n", 1, 48, "w"]}, ["y"]), "x") == (1, 1, 48, 48)


def test_channels_of_groups() -> None:
    conv = node("Conv", ["x", "w"], ["y"], group=6)
    proto = model([conv], {"x": ["n", "c", "h", "w"]}, ["y"], {"w": normal(6, 2, 3, 3)})
    assert guess(proto, "x") == (1, 12, 224, 224)


@pytest.mark.parametrize(("op", "attributes", "rows"), [("MatMul", {}, 7), ("Gemm", {}, 7), ("Gemm", {"transB": 1}, 9)])
def test_the_features_of_a_product(op: str, attributes: dict[str, int], rows: int) -> None:
    proto = model([node(op, ["x", "w"], ["y"], **attributes)], {"x": ["n", "k"]}, ["y"], {"w": normal(7, 9)})
    assert guess(proto, "x") == (1, rows)


def test_an_input_without_a_shape() -> None:
    proto = classifier(1, 3, 96, 96)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert guess(proto, "x") == (1, 3, 224, 224)


def test_the_guess_leaves_the_model_alone() -> None:
    proto = classifier("n", "c", "h", "w")
    before = proto.SerializeToString()
    guess(proto, "x")
    assert proto.SerializeToString() == before


def test_what_is_offered_works(tmp_path: Path) -> None:
    path = save(classifier("n", "c", "h", "w"), tmp_path)
    with pytest.raises(ModelError, match="is dynamic") as e:
        import_model(path)
    assert e.value.__notes__ == ["remedy: --shape x=1,3,96,96"]
    assert import_model(path, {"x": (1, 3, 96, 96)}).source.inputs == {"x": (1, 3, 96, 96)}


def test_several_open_inputs_are_offered_together(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["a", "w"], ["y"]), node("Relu", ["b"], ["z"])]
    proto = model(nodes, {"a": ["n", "k"], "b": ["n", 3, "side", "side"]}, ["y", "z"], {"w": normal(6, 4)})
    with pytest.raises(ModelError, match="2 problems") as e:
        import_model(save(proto, tmp_path))
    assert e.value.__notes__ == ["remedy: --shape a=1,6 --shape b=1,3,224,224"]
