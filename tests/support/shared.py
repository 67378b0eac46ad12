"""Third-party models and data, which are no part of the project; tests that need them skip without them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared(*parts: str) -> Path:
    """A file of the folder that EDGEC_SHARED names (default ../shared); skips the test where it is absent."""
    path = Path(os.environ.get("EDGEC_SHARED", "../shared")).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent; EDGEC_SHARED names the folder of models and data")
    return path
