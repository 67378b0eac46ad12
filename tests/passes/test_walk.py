"""A walk shows every layer what it reads by then, runs every node once, and forgets what nothing needs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes import graph as edit
from passes import statistics
from passes import walk as walking
from passes.quantize import QuantizeConfig, quantize
from passes.walk import Inputs, walk
from tests.support.canonical import canonical, every_node, normal
from tests.support.onnx_models import Array, node, run

SHAPE = {"x": [1, 3, 6, 6]}
X = {"x": normal(4, 3, 6, 6, seed=9)}


def conv(source: str, result: str, weights: str) -> onnx.NodeProto:
    return node("Conv", [source, weights], [result], pads=[1] * 4, kernel_shape=[3, 3])


def chain() -> ir.Model:
    nodes = [conv("x", "a", "u"), node("Relu", ["a"], ["r"]), conv("r", "b", "v"), conv("b", "y", "w")]
    return canonical(nodes, SHAPE, ["y"], {name: normal(3, 3, 3, 3, seed=i) for i, name in enumerate("uvw")})


def branches() -> ir.Model:
    """Two branches of the input that meet in a residual and a Concat, and a value that is read twice."""
    nodes = [
        conv("x", "a", "u"),
        conv("x", "b", "v"),
        node("Add", ["a", "b"], ["s"]),
        node("Relu", ["s"], ["r"]),
        conv("r", "c", "w"),
        node("Add", ["c", "r"], ["t"]),
        node("Concat", ["t", "a"], ["j"], axis=1),
        conv("j", "y", "z"),
    ]
    weights = {name: normal(3, 3, 3, 3, seed=i) for i, name in enumerate("uvw")}
    return canonical(nodes, SHAPE, ["y"], {**weights, "z": normal(2, 6, 3, 3, seed=7)})


def seen(model: ir.Model, names: list[str], samples: dict[str, Array] = X) -> dict[str, Array]:
    """What every named node reads, in the order of the visits."""
    found: dict[str, Array] = {}

    def visit(at: ir.Node, inputs: Inputs) -> None:
        found[str(at.name)] = np.concatenate(list(inputs))

    walk(model, names, samples, visit, ("walk", None))
    return found


def expected(model: ir.Model, value: str, samples: dict[str, Array] = X) -> Array:
    return np.concatenate([row[value] for row in statistics.run(model, samples, [value])])


@pytest.mark.parametrize("make", [chain, branches])
def test_each_layer_reads_what_the_network_computes(make: object) -> None:
    model: ir.Model = make()  # type: ignore[operator]
    names = [str(each.name) for each in model.graph if each.op_type == "Conv"]
    found = seen(model, names)
    assert list(found) == names
    for each in model.graph:
        if each.name in found:
            np.testing.assert_allclose(
                found[each.name], expected(model, str(each.inputs[0].name)), rtol=1e-5, atol=1e-5
            )


def test_visits_are_in_the_order_of_the_graph_whatever_was_asked() -> None:
    assert list(seen(branches(), ["y", "c", "b", "a"])) == ["a", "b", "c", "y"]


@pytest.mark.parametrize("make", [chain, branches])
def test_what_a_visit_changes_is_seen_downstream(make: object) -> None:
    model: ir.Model = make()  # type: ignore[operator]
    found: dict[str, Array] = {}

    def visit(at: ir.Node, inputs: Inputs) -> None:
        found[str(at.name)] = np.concatenate(list(inputs))
        old = edit.constant(at.inputs[1])
        assert old is not None
        fresh = edit.new_initializer(edit.graph_of(at), f"{at.name}_fresh", np.asarray(old * 0.5 + 0.1, np.float32))
        edit.set_input(at, 1, fresh)

    names = [str(each.name) for each in model.graph if each.op_type == "Conv"]
    before = {str(each.name): expected(model, str(each.inputs[0].name)) for each in model.graph if each.name in names}
    walk(model, names, X, visit, ("walk", None))
    for each in model.graph:
        if each.name in names:
            now = expected(model, str(each.inputs[0].name))  # only later layers changed since the visit
            np.testing.assert_allclose(found[str(each.name)], now, rtol=1e-5, atol=1e-5)
    last = names[-1]
    assert np.abs(found[last] - before[last]).max() > 0.1


def test_every_node_runs_once_on_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    plain = statistics.session

    def counted(model: ir.Model) -> object:
        ran.extend(str(each.outputs[0].name) for each in model.graph)
        return plain(model)

    monkeypatch.setattr(statistics, "session", counted)
    seen(branches(), ["a", "b", "c", "y"])
    assert sorted(ran) == sorted(set(ran))
    assert set(ran) == {"a", "b", "s", "r", "c", "t", "j"}  # nothing reads y


def test_a_layer_may_stand_before_another_that_reads_less_far_along() -> None:
    """The pool of x is read first, x itself later: x is not there yet as something that a layer reads."""
    nodes = [
        conv("x", "s", "u"),
        node("Relu", ["s"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[3, 3], pads=[1] * 4),
        conv("p", "b", "v"),
        conv("r", "a", "w"),
        node("Add", ["a", "b"], ["y"]),
    ]
    weights = {name: normal(3, 3, 3, 3, seed=i) for i, name in enumerate("uvw")}
    model = canonical(nodes, SHAPE, ["y"], weights)
    found = seen(model, ["s", "b", "a"])
    np.testing.assert_allclose(found["b"], expected(model, "p"), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["a"], expected(model, "r"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_quantized", [False, True])
def test_a_dense_block_runs_each_node_once(monkeypatch: pytest.MonkeyPatch, is_quantized: bool) -> None:
    """Every layer reads all that the layers before it gave."""
    nodes, weights = [], {}
    for index in range(5):
        parts = [f"c{i}" for i in range(index)]
        nodes += [node("Concat", ["x", *parts], [f"j{index}"], axis=1)] if parts else []
        nodes.append(node("Tanh", [f"j{index}" if parts else "x"], [f"t{index}"]))
        nodes.append(conv(f"t{index}", f"c{index}", f"w{index}"))
        weights[f"w{index}"] = normal(2, 3 + 2 * index, 3, 3, seed=index)
    model = canonical(nodes, SHAPE, ["c4"], weights)
    if is_quantized:
        model, _ = quantize(model, every_node(model), X, QuantizeConfig(equalize=None, reconstruct=False))
    ran: list[str] = []
    plain = statistics.session

    def counted(model: ir.Model) -> object:
        ran.extend(str(each.name) for each in model.graph if each.op_type == "Conv")
        return plain(model)

    names = [f"c{i}" for i in range(5)]
    wanted = {str(n.name): expected(model, str(n.inputs[0].name)) for n in model.graph if n.name in names}
    monkeypatch.setattr(statistics, "session", counted)
    found = seen(model, names)
    assert sorted(ran) == names[:4]
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5)


def test_integers_are_kept_where_a_dequantize_stands_in_front() -> None:
    model, _ = quantize(branches(), every_node(branches()), X, QuantizeConfig(equalize=None, reconstruct=False))
    kept: dict[str, Inputs] = {}
    walk(model, ["a", "c", "y"], X, lambda at, inputs: kept.update({str(at.name): inputs}), ("walk", None))
    for name, inputs in kept.items():
        assert inputs.values.dtype == np.int8, name
        at = next(each for each in model.graph if each.name == name)
        wanted = expected(model, str(at.inputs[0].name))
        np.testing.assert_array_equal(np.concatenate(list(inputs)), wanted)
        assert len(inputs) == 4


def test_a_dequantize_of_many_scales_stays_with_what_it_reads() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1),
        conv("d", "y", "w"),
    ]
    weights = {"s": np.array([0.1, 0.2, 0.3], np.float32), "z": np.zeros(3, np.int8), "w": normal(2, 3, 3, 3)}
    model = canonical(nodes, SHAPE, ["y"], weights)
    np.testing.assert_array_equal(seen(model, ["y"])["y"], expected(model, "d"))


def test_what_does_not_fit_in_memory_is_kept_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = seen(branches(), ["a", "b", "c", "y"])
    files: list[bool] = []
    place = walking._Place.array

    def noted(self: walking._Place, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        made = place(self, name, shape, dtype)
        files.append(isinstance(made, np.memmap))
        return made

    monkeypatch.setattr(walking._Place, "array", noted)
    monkeypatch.setattr(walking, "SPILL", 4 * 3 * 36 * 4 - 1)  # one map of all samples is a byte too much
    spilled = seen(branches(), ["a", "b", "c", "y"])
    assert any(files)
    for name, values in plain.items():
        np.testing.assert_array_equal(spilled[name], values)


def test_activations_are_forgotten_after_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along a chain no more than what is read and what is made of it is held."""
    held: list[int] = []
    place = walking._Place.array

    def noted(self: walking._Place, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        held.append(len(self.known))
        return place(self, name, shape, dtype)

    monkeypatch.setattr(walking._Place, "array", noted)
    nodes = [conv(f"v{i}" if i else "x", f"v{i + 1}", "w") for i in range(6)]
    model = canonical(nodes, SHAPE, ["v6"], {"w": normal(3, 3, 3, 3)})
    seen(model, [f"v{i}" for i in range(1, 7)])
    assert max(held) <= 1


def test_two_inputs_of_the_network() -> None:
    nodes = [conv("x", "a", "u"), node("Mul", ["a", "z"], ["m"]), conv("m", "y", "u")]
    model = canonical(nodes, {**SHAPE, "z": [1, 3, 6, 6]}, ["y"], {"u": normal(3, 3, 3, 3)})
    samples = {**X, "z": normal(4, 3, 6, 6, seed=3)}
    found = seen(model, ["a", "y"], samples)
    wanted = [run(model, {k: v[i : i + 1] for k, v in samples.items()}) for i in range(4)]
    assert len(wanted) == 4
    np.testing.assert_array_equal(found["a"], X["x"])
    np.testing.assert_allclose(found["y"], expected(model, "m", samples), rtol=1e-5, atol=1e-5)


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    walk(chain(), ["a", "y"], X, lambda at, inputs: None, ("look", lambda *what: told.append(what)))
    assert told == [("look", 1, 2), ("look", 2, 2)]
