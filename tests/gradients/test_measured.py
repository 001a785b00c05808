"""The exact engines against each other in the first steps."""

from __future__ import annotations

import copy
import logging
import re
import time

import pytest
import torch
from torch import Tensor

from mtobal import Balancer
from mtobal.gradients import measured
from networks import SharedNet, batch, losses

STEPS = 1 + 3 * measured.ROUNDS


def trained(balancer: Balancer, steps: range) -> list[Tensor]:
    for number in steps:
        balancer.model.zero_grad()
        balancer(losses(balancer.model, batch(number))).backward()
    return [parameter.grad for parameter in balancer.model.parameters() if parameter.grad is not None]


def slowed(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Slow some engines down, and note which run."""
    ran: list[str] = []
    init = measured.Measured.__init__

    def slower(self: measured.Measured) -> None:
        init(self)

        def wrap(name: str, engine: measured.Engine) -> measured.Engine:
            def run(*args: object) -> object:
                ran.append(name)
                time.sleep(0.03 if name in names else 0.0)
                return engine(*args)

            return run

        self._engines = {name: wrap(name, engine) for name, engine in self._engines.items()}

    monkeypatch.setattr(measured.Measured, "__init__", slower)
    return ran


@pytest.mark.parametrize("fastest", ["ghost", "loop", "batched"])
@pytest.mark.parametrize("spec", ["pcgrad", "graddrop"])
def test_the_fastest_is_kept_and_the_log_says_so(spec, fastest, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, "mtobal")
    ran = slowed(monkeypatch, *({"ghost", "loop", "batched"} - {fastest}))
    balancer = Balancer(spec, SharedNet(), gradients="measured")
    trained(balancer, range(STEPS + 3))
    assert ran == ["ghost", *["ghost", "loop", "batched"] * measured.ROUNDS, *[fastest] * 3]
    [record] = [record for record in caplog.records if record.name == "mtobal"]
    assert re.match(
        f"gradients=measured: {fastest}, the fastest of ghost .* ms, loop .* ms, batched", record.message
    )


def test_every_step_is_exact() -> None:
    for number in range(STEPS + 1):
        balancer = Balancer("mgda", SharedNet(), gradients="measured")
        found = trained(balancer, range(number + 1))
        expected = trained(Balancer("mgda", SharedNet(), gradients="loop"), range(number, number + 1))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_resumed_run_keeps_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = slowed(monkeypatch, "ghost", "loop")
    first = Balancer("mgda", SharedNet(), gradients="measured")
    trained(first, range(STEPS))
    ran.clear()
    resumed = Balancer("mgda", SharedNet(), gradients="measured")
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    trained(resumed, range(2))
    assert ran == ["batched"] * 2


def test_what_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mtobal")
    ran = slowed(monkeypatch)
    monkeypatch.setattr(measured, "_free_memory", lambda device: 1000.0)
    trained(Balancer("mgda", SharedNet(), gradients="measured"), range(STEPS))
    assert set(ran) == {"ghost"}
    assert "would not fit in memory" in caplog.text


def test_skipped_and_accumulated_steps_do_no_harm() -> None:
    net = SharedNet()
    balancer = Balancer("mgda", net, gradients="measured")
    for number in range(2 * STEPS):
        values = losses(net, batch(number))
        if number % 3 == 0:
            with balancer.accumulating():
                balancer(values).backward()
        else:
            balancer(values).backward()
    assert balancer.gradients.choice in ("ghost", "loop", "batched")
