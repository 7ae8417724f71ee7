"""One self-contained page about one or more runs."""

from ptgm_fast.runs.report.page import write_report

__all__ = ["write_report"]
