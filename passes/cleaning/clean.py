"""The clean-up that every network goes through: what exporters write, in canonical form."""

from __future__ import annotations

import onnx_ir as ir

from passes.cleaning.canonicalize_gemm import CanonicalizeGemm
from passes.cleaning.canonicalize_layout import CanonicalizeLayout
from passes.cleaning.canonicalize_ops import CanonicalizeOps
from passes.cleaning.explicit_windows import ExplicitWindows
from passes.cleaning.fold_affine import FoldAffine
from passes.cleaning.fold_batchnorm import FoldBatchNorm
from passes.cleaning.fold_constants import FoldConstants
from passes.cleaning.fold_weight_layout import FoldWeightLayout
from passes.cleaning.infer_shapes import InferShapes
from passes.cleaning.merge_pad import MergePad
from passes.cleaning.remove_noops import RemoveNoops
from passes.cleaning.remove_transposes import RemoveTransposes
from passes.cleaning.tidy import Tidy
from passes.quantize_output import QuantizeOutput


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
