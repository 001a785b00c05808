"""Settings of the whole suite."""

from __future__ import annotations

import os

from hypothesis import settings

# A change is judged by examples that do not differ from run to run; at a desk, every run tries others.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
