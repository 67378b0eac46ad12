import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.networks import Samples
from benchmarks.studies import STUDIES, Study, answers, float_bytes

ROWS = 10_000


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.key)
def test_the_sets_that_calibrate_choose_and_judge_never_meet(study: Study) -> None:
    sets = [study.calibration, *([study.choosing] if study.choosing else []), *study.judging]
    for index, one in enumerate(sets):
        for other in sets[index + 1 :]:
            assert one.file != other.file or not _rows(one) & _rows(other)


def _rows(samples: Samples) -> set[int]:
    return set(range(ROWS)[samples.start : samples.stop : samples.step])


def test_ratios_count_float32_initialisers_alone(tmp_path) -> None:
    onnx.save(_scaled(), tmp_path / "model.onnx")
    assert float_bytes(tmp_path / "model.onnx") == 4


def test_answers_are_the_first_output_of_each_sample(tmp_path) -> None:
    onnx.save(_scaled(), tmp_path / "model.onnx")
    got = answers(tmp_path / "model.onnx", np.array([[1, 2], [3, 4], [5, 6]], np.float32))
    assert got.tolist() == [[3, 6], [9, 12], [15, 18]]


def _scaled() -> onnx.ModelProto:
    """y = 3 x, batch 1, with an integer initialiser beside the factor."""
    factor = numpy_helper.from_array(np.array([3], np.float32), "factor")
    shape = numpy_helper.from_array(np.array([1, 2], np.int64), "shape")
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])]
    graph = helper.make_graph(nodes, "scaled", inputs, outputs, [factor, shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
