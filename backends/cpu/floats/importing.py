"""ONNX to TVM's graph of operators."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

from tvm.relax.frontend import onnx as frontend


class ImportFailedError(ValueError):
    """TVM cannot import the network; the message is its own."""


def known_operators() -> frozenset[str]:
    """ONNX operators of the default domain that TVM imports at all."""
    return frozenset(frontend.onnx_frontend._get_convert_map())


def import_model(proto: Any) -> Any:
    """A relax module with constant weights.

    Args:
        proto: onnx.ModelProto with static shapes.

    Raises:
        ImportFailedError: TVM refuses it.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints what fails
            warnings.simplefilter("ignore")
            return frontend.from_onnx(proto, keep_params_in_input=False)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        raise ImportFailedError(str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)) from error
