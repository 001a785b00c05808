"""A stand-in for timm, which the tests do not need to have: the shape of its calls, and one small encoder."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from torch import nn


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Puts the stand-in in timm's place, and returns what it is asked for."""
    asked: list[dict[str, object]] = []

    def create_model(name: str, *, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        asked.append({"name": name, "pretrained": pretrained, "num_classes": num_classes, "in_chans": in_chans})
        return nn.Sequential(nn.Conv2d(in_chans, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    stand_in = SimpleNamespace(create_model=create_model, is_model=lambda name: name == "tiny")
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    return asked
