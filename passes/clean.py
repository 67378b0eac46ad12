"""The clean-up that every network goes through: what exporters write, in canonical form."""

from __future__ import annotations

import onnx_ir as ir

from passes.canonicalize_gemm import CanonicalizeGemm
from passes.canonicalize_layout import CanonicalizeLayout
from passes.canonicalize_ops import CanonicalizeOps
from passes.explicit_windows import ExplicitWindows
from passes.fold_affine import FoldAffine
from passes.fold_batchnorm import FoldBatchNorm
from passes.fold_constants import FoldConstants
from passes.fold_weight_layout import FoldWeightLayout
from passes.infer_shapes import InferShapes
from passes.merge_pad import MergePad
from passes.quantize_output import QuantizeOutput
from passes.remove_noops import RemoveNoops
from passes.remove_transposes import RemoveTransposes
from passes.tidy import Tidy


def clean() -> list[ir.passes.InPlacePass]:
    """The passes that make a network canonical, in the order in which they run."""
    return [
        FoldConstants(),
        RemoveNoops(),
        ExplicitWindows(),
        FoldWeightLayout(),
        CanonicalizeGemm(),
        RemoveTransposes(),
        CanonicalizeOps(),
        MergePad(),
        CanonicalizeLayout(),
        FoldBatchNorm(),
        FoldAffine(),
        QuantizeOutput(),
        RemoveNoops(),
        Tidy(),
        InferShapes(),
    ]
