"""Random small networks through the whole chain: float, quantized, reference integers, instruction set, RTL."""

from __future__ import annotations

import numpy as np
import onnxruntime
from hypothesis import HealthCheck, given, settings

from tests.support.random_networks import RandomNetwork, networks, random_network, why_badly_spread


def test_random_network_is_the_same_for_the_same_seed() -> None:
    first, again = random_network(7), random_network(7)
    assert first.model.SerializeToString() == again.model.SerializeToString()
    assert np.array_equal(first.samples, again.samples)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks())
def test_random_network_runs_in_onnxruntime(network: RandomNetwork) -> None:
    session = onnxruntime.InferenceSession(network.model.SerializeToString(), providers=["CPUExecutionProvider"])
    for output in session.run(None, {"x": network.samples[:1]}):
        assert np.isfinite(output).all()


def test_badly_spread_values_are_told() -> None:
    ramp = np.arange(-128, 128).astype(np.int8)
    assert why_badly_spread(ramp) is None
    assert why_badly_spread(np.minimum(ramp, 0)) == "50% of its values are saturated"
    assert why_badly_spread((ramp // 20).astype(np.int8)) == "it has 14 distinct values"
