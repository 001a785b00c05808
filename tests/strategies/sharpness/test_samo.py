from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtobal import Balancer
from mtobal.strategies import Composition, build
from mtobal.strategies.sharpness import SAMO
from mtobal.strategies.sharpness.ball import ascent
from networks import TASKS, SharedNet, batch, losses
from strategies.sharpness.noisy import assert_close, closure_of, gradients, standstill

WIDTH = 256
ROW = 4 * WIDTH * WIDTH * 8  # bytes of one gradient of the trunk below


def peak(run: Callable[[], None]) -> int:
    """The most bytes that tensors held at a time, beyond those of the start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def rows_of(spec: str, num_tasks: int) -> float:
    """The peak memory of a step, in gradients of the shared parameters."""
    torch.manual_seed(0)
    trunk = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))).double()
    heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(num_tasks)).double()
    net, inputs = nn.ModuleList([trunk, heads]), torch.randn(2, WIDTH, dtype=torch.float64)

    def closure() -> dict[str, Tensor]:
        features = trunk(inputs)
        return {str(task): head(features).square().mean() for task, head in enumerate(heads)}

    balancer, optimizer = Balancer(spec, net, gradients="loop"), standstill(net)
    balancer.step(closure, optimizer)
    optimizer.zero_grad()
    return peak(lambda: balancer.step(closure, optimizer)) / ROW


@pytest.mark.parametrize("inner", ["", "cagrad+"])
@pytest.mark.parametrize("options", ["", "(directions=2)", "(shared_direction=true)", "(adaptive=true)"])
def test_its_memory_above_the_aggregation_is_a_few_rows_whatever_the_number_of_tasks(
    inner: str, options: str
) -> None:
    extra = {tasks: rows_of(f"{inner}samo{options}", tasks) - rows_of(inner.rstrip("+") or "ew", tasks) for tasks in (2, 8, 16)} \
        if inner else {tasks: rows_of(f"samo{options}", tasks) - rows_of("ew", tasks) for tasks in (2, 8, 16)}
    print(extra)
    assert max(extra.values()) < 5
    assert extra[16] < extra[2] + 0.5


def test_exact_gradients_of_their_own_need_no_rows_beyond_those_of_the_aggregation() -> None:
    extra = {k: rows_of("cagrad+samo(local=exact)", k) - rows_of("cagrad", k) for k in (2, 16)}
    print(extra)
    assert extra[16] < 6
