"""The callback on two ranks, in half precision, with a compiled module, and where it says no."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from mtobal import UsageError
from mtobal.callbacks import MultiTaskBalancer
from networks import TASKS, SharedNet, batch, frozen, losses

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:You are using .ddp_fork."),
]

SPECS = ["uw", "nash_mtl", "graddrop", "famo", "uw+cagrad"]


class Module(pl.LightningModule):
    """A plain LightningModule; on several ranks each takes its part of every batch."""

    def __init__(self, dtype: torch.dtype = torch.float64, spare: bool = False) -> None:
        super().__init__()
        self.net = SharedNet(dtype=dtype)
        self.net.spare.requires_grad_(spare)

    def training_step(self, data, batch_idx):
        inputs, *targets = self.mine(data)
        values = losses(self.net, (inputs, dict(zip(TASKS, targets, strict=True))))
        return {"loss": sum(values.values()), "losses": values}

    def mine(self, data: list[Tensor]) -> list[Tensor]:
        if not dist.is_initialized():
            return data
        return [part.chunk(dist.get_world_size())[dist.get_rank()] for part in data]

    def train_dataloader(self):
        inputs, targets = batch(size=48, dtype=next(self.net.parameters()).dtype)
        return DataLoader(TensorDataset(inputs, *targets.values()), batch_size=8)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def fit(tmp_path: Path, module: Module, callback: MultiTaskBalancer, **options) -> pl.Trainer:
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": tmp_path,
    }
    trainer = pl.Trainer(callbacks=[callback], **{**defaults, **options})
    trainer.fit(module)
    return trainer


def assert_close(one: Module, other: Module, rtol: float = 1e-9) -> None:
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("wrap", "options"),
    [
        ({}, {}),
        ({}, {"accumulate_grad_batches": 4}),  # six batches: the last group is ragged
        ({"find_unused_parameters": True}, {}),
        ({"find_unused_parameters": True}, {"accumulate_grad_batches": 4}),
        ({"static_graph": True}, {"gradient_clip_val": 0.05}),
        ({"gradient_as_bucket_view": True}, {}),
    ],
    ids=["plain", "accumulation", "unused", "unused accumulation", "static clipping", "view"],
)
@pytest.mark.parametrize("spec", SPECS)
def test_two_ranks_equal_one_process(spec: str, wrap: dict, options: dict, tmp_path: Path) -> None:
    if spec == "famo" and "accumulate_grad_batches" in options:
        spec = "famo+mgda"  # a loss weighting alone weighs each batch by its own losses
    spare = "find_unused_parameters" in wrap
    together, alone = Module(spare=spare), Module(spare=spare)
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo", **wrap)
    fit(tmp_path, together, MultiTaskBalancer(spec), strategy=ddp, devices=2, **options)
    fit(tmp_path, alone, MultiTaskBalancer(spec), **options)
    assert_close(together, alone)


@pytest.mark.parametrize("spec", SPECS)
def test_bfloat16(spec: str, tmp_path: Path) -> None:
    """Autocast rounds the activations; weights come from gradients in single precision."""
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        module, callback = Module(torch.float32), MultiTaskBalancer(spec)
        fit(tmp_path, module, callback, precision=precision, max_epochs=1)
        found[precision] = callback.balancer.weights
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in module.parameters())
    assert found["bf16-mixed"] == pytest.approx(found["32-true"], rel=0.1)


class Overflowing(Module):
    """At one step the losses are so large that their gradients overflow half precision under the loss scale."""

    def training_step(self, data, batch_idx):
        output = super().training_step(data, batch_idx)
        if batch_idx == 3:
            output["losses"] = {task: 1e30 * loss for task, loss in output["losses"].items()}
        return output


@pytest.mark.parametrize("spec", [*SPECS, "rlw+pcgrad"])
def test_a_step_that_the_gradient_scaler_skips(spec: str, tmp_path: Path) -> None:
    states: dict[int, object] = {}
    weights: dict[int, Tensor] = {}

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, data, batch_idx):
            states[batch_idx] = frozen(callback.balancer.strategy.state_dict())
            weights[batch_idx] = pl_module.net.encoder[0].weight.detach().clone()

    callback, module = MultiTaskBalancer(spec), Overflowing(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    trainer = pl.Trainer(
        callbacks=[callback, Watch()],
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module)
    assert scaler.get_scale() == 2.0**11
    assert torch.equal(weights[3], weights[2])
    assert not torch.equal(weights[4], weights[3])
    assert states[3] == states[2]
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("spec", ["uw", "nash_mtl", "graddrop"])
def test_under_a_loss_scale_the_weights_are_the_same(spec: str, tmp_path: Path) -> None:
    found = []
    for scale in (1.0, 2.0**12):
        callback, module = MultiTaskBalancer(spec), Module(torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        fit(tmp_path, module, callback, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)], max_epochs=1)
        found.append(module)
    assert_close(*found, rtol=2e-3)


class Checkpointed(Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net.encoder.forward = self.recomputed(self.net.encoder, reentrant)

    def recomputed(self, encoder, reentrant):
        def forward(inputs):
            for layer in encoder:
                inputs = checkpoint(layer, inputs, use_reentrant=reentrant)
            return inputs

        return forward


@pytest.mark.parametrize("spec", ["uw", "nash_mtl", "graddrop"])
def test_activation_checkpointing(spec: str, tmp_path: Path) -> None:
    plain, recomputing = Module(), Checkpointed(reentrant=False)
    for module in (plain, recomputing):
        fit(tmp_path, module, MultiTaskBalancer(spec))
    assert_close(plain, recomputing)


@pytest.mark.parametrize("spec", ["uw", "nash_mtl", "graddrop"])
def test_a_compiled_encoder(spec: str, tmp_path: Path) -> None:
    plain, compiled = Module(), Module()
    compiled.net.encoder = torch.compile(compiled.net.encoder, backend="aot_eager")
    for module in (plain, compiled):
        fit(tmp_path, module, MultiTaskBalancer(spec))
    assert_close(plain, compiled)


def test_sharded_parameters_are_refused_with_a_hint(tmp_path: Path) -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=1, strategy=ModelParallelStrategy(), logger=False)
    callback = MultiTaskBalancer("mgda")
    with pytest.raises(
        UsageError, match="does not keep: train with strategy='ddp', or choose a strategy that weighs"
    ):
        callback.setup(trainer, Module(), "fit")
    MultiTaskBalancer("uw").setup(trainer, Module(), "fit")
