"""What importing costs, and which room may import which."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    *("lightning", "torchmetrics", "cvxpy", "scipy", "ray"),
    *("jsonargparse", "rich", "jinja2", "plotly", "yaml", "sklearn", "h5py", "PIL"),
}


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_import_is_cheap() -> None:
    code = """
import json, sys, torch
before = set(sys.modules)
import mtobal
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    new = {name: name.split(".") for name in json.loads(run(code))}
    ours = {parts[1] for parts in new.values() if parts[0] == "mtobal" and len(parts) > 1}
    others = {name for name, parts in new.items() if parts[0] != "mtobal"}
    assert ours.isdisjoint({"bench", "callbacks", "cli", "data", "metrics", "models", "report", "tasks"})
    assert HEAVY.isdisjoint(name.split(".")[0] for name in others)
    assert len(others) <= 15, others  # 2 when this was written


def test_rooms_import_only_from_the_rooms_below() -> None:
    run("from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))")
