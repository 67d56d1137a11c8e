"""What was measured, on a page: figures and tables."""

from __future__ import annotations

from tether.report.html import write_report

__all__ = ["write_report"]
