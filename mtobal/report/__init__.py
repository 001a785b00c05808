"""From the records of an experiment to its report: a page, Markdown, CSV and a table for the console."""

from __future__ import annotations

from mtobal.report.build import build_report
from mtobal.report.console import console_table
from mtobal.report.summary import summary_table

__all__ = ["build_report", "console_table", "summary_table"]
