"""Networks as torch writes them, by both of its exporters and in old and new opsets."""

from __future__ import annotations

import io
import warnings

import onnx
import pytest

from tests.support.onnx_models import assert_same_outputs, imported, ops

torch = pytest.importorskip("torch", reason="torch writes the networks of this test; it comes with edgec[train]")
nn = torch.nn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def exported(network: object, shape: tuple[int, ...], **options: object) -> onnx.ModelProto:
    torch.manual_seed(0)
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network.eval(), torch.zeros(shape), target, dynamo=False, **options)  # type: ignore[attr-defined]
    return onnx.load_from_string(target.getvalue())


def residual(activation: object) -> object:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.last = nn.Linear(8, 5)
            self.act = activation

        def forward(self, x: object) -> object:
            x = self.act(self.norm(self.first(x)))
            x = x + self.act(self.depthwise(x))
            return self.last(torch.flatten(self.pool(x), 1))

    return Residual()


@pytest.mark.parametrize("opset", [9, 13, 17])
@pytest.mark.parametrize("activation", ["ReLU", "ReLU6", "Hardswish", "SiLU", "GELU", "LeakyReLU", "PReLU"])
def test_residual_network(activation: str, opset: int) -> None:
    network = residual(getattr(nn, activation)())
    proto = exported(network, (1, 3, 12, 12), opset_version=opset, training=torch.onnx.TrainingMode.PRESERVE)
    result = imported(proto)
    after = ops(result.model)
    assert after.count("Conv") == 2
    assert after[-1] == "Gemm"
    assert not {"BatchNormalization", "Constant", "Identity", "Transpose", "Shape"} & set(after)
    assert_same_outputs(proto, result.model)


def test_dynamic_batch_and_view() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 4, 5)
            self.norm = nn.BatchNorm1d(4)
            self.last = nn.Linear(4 * 12, 3)

        def forward(self, x: object) -> object:
            x = torch.relu(self.norm(self.conv(x)))
            return torch.softmax(self.last(x.view(x.size(0), -1)), 1)

    axes = {"x": {0: "batch"}}
    proto = exported(Viewed(), (1, 2, 16), input_names=["x"], dynamic_axes=axes, do_constant_folding=False)
    result = imported(proto)
    assert ops(result.model) == ["Conv", "Relu", "Reshape", "Gemm", "Softmax"]
    assert_same_outputs(proto, result.model)


def test_dense_rows() -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    proto = exported(network, (1, 7, 6))
    result = imported(proto)
    assert ops(result.model) == ["Transpose", "Conv", "Relu", "Conv", "Transpose"]
    assert_same_outputs(proto, result.model)


def test_new_exporter() -> None:
    torch.manual_seed(0)
    network = residual(nn.GELU()).eval()  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network, (torch.zeros(1, 3, 12, 12),), dynamo=True, verbose=False)
    proto = program.model_proto
    result = imported(proto)
    assert not {"BatchNormalization", "Identity", "Shape"} & set(ops(result.model))
    assert_same_outputs(proto, result.model)
