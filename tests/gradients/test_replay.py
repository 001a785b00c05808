from __future__ import annotations

import pytest
import torch
from torch import nn

from mtobal.gradients import replayed, rng_state


def test_the_second_run_draws_the_same_and_leaves_no_trace() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    inputs = torch.randn(16, 4)
    before = rng_state()
    first = net(inputs)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    expected_next = torch.rand(3)
    torch.set_rng_state(before.cpu)
    net.load_state_dict(buffers, strict=False)

    torch.manual_seed(123)
    now = torch.get_rng_state()
    with replayed(net, before):
        second = net(inputs)
        following = torch.rand(3)
    assert torch.equal(first, second)
    assert torch.equal(expected_next, following)
    assert torch.equal(torch.get_rng_state(), now)
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_an_exception_leaves_no_trace_either() -> None:
    net = nn.BatchNorm1d(3)
    now = torch.get_rng_state()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError), replayed(net, rng_state()):
        net(torch.randn(8, 3)) @ torch.ones(5)  # shapes that do not fit
    assert torch.equal(torch.get_rng_state(), now)
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name])
