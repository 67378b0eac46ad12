"""The version of edgec, one number for package, manifest and report."""

from __future__ import annotations

VERSION = "0.1.0"
