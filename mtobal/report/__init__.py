"""From the records of an experiment to its report: a page, Markdown, CSV, JSON and a table for the console."""

from __future__ import annotations

from mtobal.report.build import build_changes, build_report, write_report
from mtobal.report.changes_text import changes_table
from mtobal.report.console import console_table
from mtobal.report.summary import summary_table

__all__ = ["build_changes", "build_report", "changes_table", "console_table", "summary_table", "write_report"]
