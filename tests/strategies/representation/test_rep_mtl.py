from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mtobal import UsageError
from mtobal.strategies import Step, build
from mtobal.strategies.representation.rep_mtl import cross_task_alignment, saliencies, saliency_entropy


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_matrices(saliency: Tensor, temperature: float, positives: str, denominator: str) -> Tensor:
    """The alignment as the paper writes it, with its channel-by-channel matrices."""
    tasks, batch = saliency.shape[:2]
    anchors = saliency.mean((0, 3))
    of_anchor = [torch.outer(anchor, anchor).flatten() for anchor in anchors]
    terms = []
    for b in range(batch):
        others = [torch.cosine_similarity(of_anchor[b], of_anchor[k], dim=0) for k in range(batch) if k != b]
        below = torch.stack(others).div(temperature).exp().sum()
        matrices = [(saliency[t, b] @ saliency[t, b].T).flatten() for t in range(tasks)]
        similar = torch.stack([torch.cosine_similarity(of_anchor[b], matrix, dim=0) for matrix in matrices])
        above = (similar / temperature).exp()
        if positives == "log_sum":
            above = above.sum(0, keepdim=True)
        term = -(above / (below if denominator == "negatives" else below + above)).log()
        terms.append(term.sum() if positives == "sum" else term.mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("positives", ["mean", "sum", "log_sum"])
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (2, 3, 7, 4), (3, 4, 6, 1), (1, 2, 3, 2)])
def test_alignment_needs_no_matrices(shape: tuple[int, ...], positives: str, denominator: str) -> None:
    saliency = random(*shape)
    found = cross_task_alignment(saliency, 0.3, positives, denominator)
    torch.testing.assert_close(found, by_matrices(saliency, 0.3, positives, denominator))


def test_alignment_does_not_depend_on_the_scale_of_all_losses() -> None:
    saliency = random(3, 4, 5, 2)
    for factor in (1e-9, 1e9):
        torch.testing.assert_close(cross_task_alignment(factor * saliency), cross_task_alignment(saliency))


def test_entropy_has_its_bounds() -> None:
    alone = torch.zeros(3, 2, 4, 5, dtype=torch.float64)
    alone[0] = 1.0
    assert saliency_entropy(alone).abs() < 1e-11
    alike = torch.ones_like(alone)
    assert saliency_entropy(alike).item() == pytest.approx(math.log(3), abs=1e-11)
    cancelling = torch.cat([alike, -alike], dim=2)[:, :, ::4]
    assert saliency_entropy(cancelling) == 0
    assert saliency_entropy(cancelling, "absolute").item() == pytest.approx(math.log(3), abs=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero", ["task", "sample", "all"])
def test_vanishing_saliencies_have_finite_values_and_gradients(zero: str, dtype: torch.dtype) -> None:
    saliency = random(3, 4, 5, 2).to(dtype)
    saliency[{"task": (1,), "sample": (slice(None), 2), "all": (...,)}[zero]] = 0
    saliency.requires_grad_()
    for term in (saliency_entropy(saliency), cross_task_alignment(saliency)):
        (gradient,) = torch.autograd.grad(term, saliency)
        assert term.isfinite()
        assert gradient.isfinite().all()


def test_one_sample_has_nothing_to_contrast_with() -> None:
    saliency = random(3, 1, 5, 2).requires_grad_()
    assert cross_task_alignment(saliency) == 0
    assert saliency_entropy(saliency) > 0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh())
            self.heads = nn.ModuleList([nn.Sequential(nn.Flatten(), nn.Linear(36, 3)) for _ in range(2)])
        self.double()

    def forward(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = self.encoder(inputs)
        return z, [
            head(z).square().sum(1).mean() * factor for head, factor in zip(self.heads, (1, 9), strict=True)
        ]


def penalty(spec: str, net: nn.Module, inputs: Tensor) -> Tensor:
    z, losses = net(inputs)
    return build(spec).regulariser.penalty(z, losses, Step.of(2, torch.stack(losses).detach()))


@pytest.mark.parametrize(
    "spec", ["rep_mtl", "rep_mtl(log_losses=true, channel_mean=absolute, positives=log_sum, denominator=all)"]
)
def test_the_second_derivative_reaches_every_parameter(spec: str) -> None:
    net, inputs = Net(), random(3, 1, 5, 5)
    value = penalty(spec, net, inputs)
    value.backward()
    step = 1e-6
    for name, parameter in net.named_parameters():
        with torch.no_grad():
            flat = parameter.view(-1)
            before = flat[0].item()
            flat[0] = before + step
        above = penalty(spec, net, inputs).item()
        with torch.no_grad():
            flat[0] = before - step
        below = penalty(spec, net, inputs).item()
        with torch.no_grad():
            flat[0] = before
        numeric = (above - below) / (2 * step)
        assert parameter.grad.view(-1)[0].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8), name
    assert net.encoder[0].weight.grad.abs().max() > 0


def test_saliencies_are_gradients_and_zero_where_there_is_none() -> None:
    net, inputs = Net(), random(3, 1, 5, 5)
    z, losses = net(inputs)
    found = saliencies([*losses, net.heads[0][1].weight.sum()], z)
    assert found.shape == (3, 3, 4, 9)
    expected = torch.autograd.grad(losses[1], z, retain_graph=True)[0].flatten(2)
    torch.testing.assert_close(found[1], expected)
    assert (found[2] == 0).all()


def test_descending_the_penalty_separates_the_tasks() -> None:
    net, inputs = Net(), random(4, 1, 5, 5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    spec = "rep_mtl(entropy=1.0, alignment=0.0)"
    first = penalty(spec, net, inputs).item()
    for _ in range(60):
        optimizer.zero_grad()
        penalty(spec, net, inputs).backward()
        optimizer.step()
    assert penalty(spec, net, inputs).item() < 0.7 * first


def test_half_precision_is_raised_before_squares_are_taken() -> None:
    net, inputs = Net().bfloat16(), random(3, 1, 5, 5).bfloat16()
    value = penalty("rep_mtl", net, inputs)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(penalty("rep_mtl", Net(), random(3, 1, 5, 5)).item(), rel=0.1)
    value.backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_the_loss_weights_are_left_alone() -> None:
    losses = torch.tensor([1.0, 2.0])
    assert build("rep_mtl").loss_weights(Step.of(2, losses)).tolist() == [1.0, 1.0]
    assert build("rep_mtl+uw+pcgrad").regulariser is not None


def test_wrong_use() -> None:
    strategy = build("rep_mtl").regulariser
    losses = [torch.ones((), requires_grad=True)]
    with pytest.raises(UsageError, match="no graph"):
        strategy.penalty(torch.ones(2, 3), losses, Step.of(1, torch.ones(1)))
    with pytest.raises(UsageError, match="positive temperature"):
        build("rep_mtl(temperature=0)")
    logarithmic, z = build("rep_mtl(log_losses=true)").regulariser, torch.ones(2, 3, requires_grad=True)
    with pytest.raises(UsageError, match=r"rep_mtl\(log_losses=true\) needs losses that are not negative"):
        logarithmic.penalty(z, [-z.sum()], Step.of(1, torch.tensor([-6.0])))
