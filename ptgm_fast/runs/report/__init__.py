"""One self-contained page about one or several runs."""

from ptgm_fast.runs.report.page import write_report

__all__ = ["write_report"]
