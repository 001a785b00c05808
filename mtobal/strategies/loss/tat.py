"""Task-adaptive loss balancing: a small network learns how uncertain each loss is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.positive import positive_losses
from mtobal.strategies.registry import register

# Added to the variance, as in the official code.
EPSILON = 1e-8


def balanced_loss(losses: Tensor, uncertainties: Tensor, floor: float = 1e-4) -> Tensor:
    r"""Weigh each loss by its uncertainty, and the uncertainty by a penalty on large ones.

    The mean over the samples of ``l_i / (2 (u_i^2 + 1e-8)) + log(1 + u_i^2) / 2``. For a fixed loss it is smallest
    at ``u^2 = (l + sqrt(l^2 + 4 l)) / 2``, so that small losses weigh about ``1 / (2 sqrt(l))`` and large ones
    ``1 / (2 l)``.

    Parameters
    ----------
    losses : Tensor of shape (B,)
        Not negative.
    uncertainties : Tensor of shape (B,)
        u, of either sign.
    floor : float
        Least variance ``u^2``. Below it the value is that of the floor, and the slope too, so that an uncertainty
        that comes close to zero neither blows the weight up nor gets stuck.

    Returns
    -------
    Tensor
        A scalar.

    References
    ----------
    Task-Adaptive Transformer for all-in-one medical image restoration, MICCAI 2025, arXiv:2512.14550.

    Examples
    --------
    >>> import torch
    >>> balanced_loss(torch.tensor([0.2, 0.4]), torch.ones(2))
    tensor(0.4966)
    """
    variances = _guarded(uncertainties, floor).square()
    return (losses * _weight(variances) + torch.log1p(variances) / 2).mean()


def uncertainty_weights(uncertainties: Tensor, floor: float = 1e-4) -> Tensor:
    """Return the factors ``1 / (2 (u^2 + 1e-8))`` that `balanced_loss` puts on the losses.

    Parameters
    ----------
    uncertainties : Tensor of shape (B,)
    floor : float

    Returns
    -------
    Tensor of shape (B,)
    """
    return _weight(_guarded(uncertainties, floor).square())


def restoration_losses(degraded: Tensor, restored: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of every restored image, and what describes it.

    Parameters
    ----------
    degraded, restored, target : Tensor of shape (B, ...)
        Images before and after restoration, and as they should be.

    Returns
    -------
    losses : Tensor of shape (B,)
        Mean absolute error of the restored image.
    descriptors : Tensor of shape (B, 3)
        Mean absolute differences of degraded image and target, of degraded and restored image, and of restored
        image and target, without graph.

    Examples
    --------
    >>> import torch
    >>> restoration_losses(torch.zeros(1, 4), torch.ones(1, 4), torch.full((1, 4), 3.0))
    (tensor([2.]), tensor([[3., 1., 2.]]))
    """
    pairs = ((degraded, target), (degraded, restored), (restored, target))
    distances = [(first - second).abs().flatten(1).mean(1) for first, second in pairs]
    return distances[2], torch.stack(distances, dim=1).detach()


class UncertaintyEstimator(nn.Module):
    """From a few numbers that describe a loss to its uncertainty, which is one before it has learned.

    Parameters
    ----------
    descriptors : int
        How many numbers describe a loss.
    """

    def __init__(self, descriptors: int) -> None:
        super().__init__()
        self.enter = nn.Linear(descriptors, 16)
        self.residual = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 256), nn.GELU(), nn.Linear(256, 16))
        self.leave = nn.Linear(16, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.ones_(self.leave.bias)

    def forward(self, descriptors: Tensor) -> Tensor:
        """Return uncertainties of shape (B,) for descriptors of shape (B, D)."""
        hidden = self.enter(descriptors)
        return self.leave(hidden + self.residual(hidden)).squeeze(1)  # type: ignore[no-any-return]


class SampleUncertainty(nn.Module):
    """Balance the losses of single samples, whatever task each belongs to, by a learned uncertainty.

    Its parameters join the optimizer of the model. The scalar that it returns is trained like any loss:
    the samples with their learned weights, and the estimator by the same backward pass.

    Parameters
    ----------
    descriptors : int
        How many numbers describe a sample: three for `restoration_losses`, one for the loss alone.
    floor : float
        Least variance, as in `balanced_loss`.

    Examples
    --------
    In the restoration form:

    >>> import torch
    >>> degraded, restored, target = torch.rand(3, 4, 1, 8, 8)
    >>> criterion = SampleUncertainty(descriptors=3)
    >>> loss = criterion(*restoration_losses(degraded, restored, target))

    For any tasks, described by the loss itself:

    >>> criterion = SampleUncertainty()
    >>> loss = criterion(torch.tensor([0.2, 0.4, 3.0]))
    """

    def __init__(self, descriptors: int = 1, floor: float = 1e-4) -> None:
        super().__init__()
        self.estimator = UncertaintyEstimator(descriptors)
        self.floor = floor

    def forward(self, losses: Tensor, descriptors: Tensor | None = None) -> Tensor:
        """Return the balanced loss.

        Parameters
        ----------
        losses : Tensor of shape (B,)
            One loss a sample.
        descriptors : Tensor of shape (B, D), optional
            What describes each sample; by default its loss. No gradient goes through it.
        """
        given = losses[:, None] if descriptors is None else descriptors
        return balanced_loss(losses, self.estimator(given.detach()), self.floor)


@register("tat")
class TAT(LossWeighting):
    """Learn the uncertainty of each task from its loss.

    For images in which every sample is restored from its own degradation, or for any batch of samples of several
    tasks, use `SampleUncertainty`, which weighs samples.

    Parameters
    ----------
    lr : float
        Learning rate of the estimator, which has an AdamW of its own.
    floor : float
        Least variance ``u^2``, so that no weight exceeds ``1 / (2 K floor)``.
    seed : int
        Seed of the estimator's first parameters.
    """

    card = Card(
        summary="Learns the uncertainty of each loss by a small network that sees nothing but the loss.",
        when="Losses of one kind whose size tells how hard their sample or task is, as in image restoration; "
        "SampleUncertainty is the form for samples. Losses must not be negative. The paper claims the state of "
        "the art in PET synthesis, CT denoising and MRI super-resolution, for task-specific and all-in-one "
        "training, together with weights generated for each task.",
        paper="Task-Adaptive Transformer (TAT) for all-in-one medical image restoration, MICCAI 2025, "
        "arXiv:2512.14550.",
        defaults_source="Estimator, its learning rate and AdamW of the official code. There an uncertainty of "
        "zero gives a weight of 5e7; the floor on its square is ours.",
        state="the estimator (8,545 numbers) and the moments of its optimizer",
        scale="own",
        heads="weighted",
    )

    def __init__(self, lr: float = 2e-4, floor: float = 1e-4, seed: int = 0) -> None:
        super().__init__()
        if lr <= 0 or floor <= 0:
            raise UsageError(f"tat: learning rate and floor must be positive, not {lr} and {floor}.")
        self.lr = lr
        self.floor = floor
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # In float64: the numbers are few, and losses come in every dtype.
            self.estimator = UncertaintyEstimator(1).double()

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.estimator.parameters(), lr=self.lr, betas=(0.9, 0.99), weight_decay=0.01)

    def weigh(self, step: Step) -> Tensor:
        losses = self._losses(step)
        with torch.no_grad():
            weights = uncertainty_weights(self.estimator(losses[:, None]), self.floor)
        return (weights / len(losses)).to(step.require_losses("tat"))

    def update(self, step: Step) -> None:
        losses = self._losses(step)
        parameters = list(self.estimator.parameters())
        with torch.enable_grad():
            objective = balanced_loss(losses, self.estimator(losses[:, None]), self.floor)
            gradients = torch.autograd.grad(objective, parameters)
        if self.optimizer is None:
            self.optimizer = self.make_optimizer()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _losses(self, step: Step) -> Tensor:
        """Return the losses in the precision of the estimator, which follows them to their device."""
        losses = positive_losses(step, "tat")
        if self.estimator.leave.bias.device != losses.device:
            self.estimator.to(losses.device)
            if self.optimizer is not None:
                self.optimizer.load_state_dict(self.optimizer.state_dict())  # takes its moments along
        return losses.double()


def _weight(variances: Tensor) -> Tensor:
    return 0.5 / (variances + EPSILON)


def _guarded(uncertainties: Tensor, floor: float) -> Tensor:
    """Keep the square at or above the floor, with the slope of the identity."""
    least = floor**0.5
    kept = torch.copysign(uncertainties.detach().abs().clamp(min=least), uncertainties.detach())
    return uncertainties + (kept - uncertainties.detach())
