"""`telecine verify`: a bundle against its source under torch, stage by stage."""

from __future__ import annotations

from telecine_export.verify.bundle import Report, as_text, verify_bundle
from telecine_export.verify.comparison import StageReport

__all__ = ["Report", "StageReport", "as_text", "verify_bundle"]
