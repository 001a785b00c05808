"""Improvable gap balancing, by reinforcement learning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus

from mtobal.errors import UsageError
from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.epochs import EpochWeighting, fill
from mtobal.strategies.loss.positive import FLOOR, log_slopes, positive_losses
from mtobal.strategies.loss.rlw import by_name
from mtobal.strategies.registry import register

BASE_EPOCH = 1  # its average losses are the unit of the reward
TRAIN_AFTER = 3  # epochs
TRAIN_EVERY = 50  # steps
BATCH_SIZE = 256
MEMORY = 10_000  # transitions
HIDDEN = 128
DISCOUNT = 0.99
TARGET_RATE = 0.005
INITIAL_TEMPERATURE = 0.2


class _Perceptron(nn.Sequential):
    """Two hidden layers, with weights from the strategy's own generator."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        sizes = [inputs, HIDDEN, HIDDEN, outputs]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            # Made without values, because Linear would draw them from the global generator.
            linear = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
            for parameter in linear.parameters():
                nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
            layers += [linear, nn.ReLU()]
        super().__init__(*layers[:-1])


class SoftActorCritic(nn.Module):
    """The networks of a soft actor-critic agent whose actions are K positive weights that sum to K.

    An action is K times the softmax of a normal u. Its log-probability is corrected as if the squashing were a
    hyperbolic tangent, as in the official code of IGBv2: the softmax has no density, because it forgets a shift.

    Parameters
    ----------
    num_tasks : int
        K; states are K losses.
    generator : torch.Generator
        Of the initial weights and of all draws.
    """

    def __init__(self, num_tasks: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.actor = _Perceptron(num_tasks, 2 * num_tasks, generator)
        self.critics = nn.ModuleList([_Perceptron(2 * num_tasks, 1, generator) for _ in range(2)])
        self.targets = nn.ModuleList([_Perceptron(2 * num_tasks, 1, generator) for _ in range(2)])
        self.targets.load_state_dict(self.critics.state_dict())
        self.targets.requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(INITIAL_TEMPERATURE)))

    def act(self, states: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw actions: the scores u, the actions, and their log-probabilities of shape (n, 1)."""
        means, log_scales = self.actor(states).chunk(2, dim=-1)
        log_scales = log_scales.clamp(-20, 2)
        noise = torch.randn(means.shape, generator=generator)
        scores = means + log_scales.exp() * noise
        log_normal = -(noise.square() + math.log(2 * math.pi)) / 2 - log_scales
        correction = 2 * (math.log(2) - scores - softplus(-2 * scores))
        log_probabilities = (log_normal - correction).sum(-1, keepdim=True)
        return scores, self.num_tasks * scores.softmax(-1), log_probabilities

    def value(self, critics: nn.ModuleList, states: Tensor, actions: Tensor) -> Tensor:
        """Return the lower of two critics' values."""
        inputs = torch.cat([states, actions], dim=-1)
        return torch.minimum(critics[0](inputs), critics[1](inputs))

    def train_once(
        self, transitions: Tensor, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        """Update critics, actor, temperature and targets on a batch of (state, action, next state, reward)."""
        states, actions, following, rewards = torch.split(transitions, [self.num_tasks] * 3 + [1], dim=1)
        temperature = self.log_temperature.exp().detach()
        with torch.no_grad():
            _, next_actions, log_probabilities = self.act(following, generator)
            future = self.value(self.targets, following, next_actions) - temperature * log_probabilities
            wanted = rewards + DISCOUNT * future
        inputs = torch.cat([states, actions], dim=1)
        errors = sum(mse_loss(critic(inputs), wanted) for critic in self.critics)
        _descend(errors, list(self.critics.parameters()), optimizer)

        _, chosen, log_probabilities = self.act(states, generator)
        loss = (temperature * log_probabilities - self.value(self.critics, states, chosen)).mean()
        _descend(loss, list(self.actor.parameters()), optimizer)

        surplus = (log_probabilities - self.num_tasks).detach().mean()  # the target entropy is -K
        _descend(-self.log_temperature * surplus, [self.log_temperature], optimizer)

        with torch.no_grad():
            for target, parameter in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                target.lerp_(parameter, TARGET_RATE)


def _descend(loss: Any, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Step on these parameters alone: an optimizer leaves those without gradient as they are."""
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None


@register("igb_v2")
class IGBv2(EpochWeighting):
    """Let a soft actor-critic agent choose the weights of the logarithms of the losses.

    Its state are the losses, its reward is the least improvement of any task from one batch to the next, in
    units of the average losses of the second epoch. It learns from the fourth epoch on.

    Parameters
    ----------
    random_epochs : int
        In the first epochs the weights are random; then the agent chooses. Needs to be told of the end of each
        epoch.
    lr : float
        Learning rate of the agent's networks.
    seed : int
        Seed of the weights, of the agent and of what it learns from.
    """

    card = Card(
        summary="Lets a reinforcement learning agent choose the weights of the logarithms of the losses.",
        when="Long trainings with enough steps for the agent to learn from. The reward compares different "
        "batches, so it is noisy; `igb_v1` is simpler and close in the paper's results.",
        paper="Dai et al., Improvable Gap Balancing for Multi-Task Learning, UAI 2023, arXiv:2307.15429.",
        defaults_source="The official code; but the reward is not rescaled when the learning rate of the model "
        "changes, and the agent learns after a step, not before it.",
        state="the agent, its optimizer, 10000 transitions, the base losses and a random generator",
        scale="own",
        heads="weighted",
    )

    generator: torch.Generator
    agent: SoftActorCritic | None
    base: Tensor | None
    previous: Tensor | None
    action: Tensor | None
    memory: Tensor | None
    stored: Tensor
    steps: Tensor

    def __init__(self, random_epochs: int = 5, lr: float = 3e-4, seed: int = 0) -> None:
        super().__init__()
        if random_epochs < 0:
            raise UsageError(f"igb_v2: random_epochs must not be negative, but is {random_epochs}.")
        if lr <= 0:
            raise UsageError(f"igb_v2: the learning rate must be positive, not {lr}.")
        self.random_epochs = random_epochs
        self.lr = lr
        self.generator = torch.Generator().manual_seed(seed)
        self.agent = None
        for name in ("base", "previous", "action", "memory"):
            self.register_buffer(name, None)
        for name in ("stored", "steps"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self._drawn: Tensor | None = None  # the action of the step at hand

    def make_optimizer(self) -> torch.optim.Optimizer:
        assert self.agent is not None
        return torch.optim.Adam([p for p in self.agent.parameters() if p.requires_grad], lr=self.lr)

    def weigh(self, step: Step) -> Tensor:
        losses = positive_losses(step, "igb_v2")
        scores = self._draw(step, losses)
        self._drawn = len(scores) * scores.softmax(0)
        return len(losses) * scores[list(step.active)].softmax(0).to(losses) * log_slopes(losses)

    def update(self, step: Step) -> None:
        super().update(step)
        losses = step.require_losses("igb_v2")
        following = self._state(step, losses)
        if self.previous is not None and self.action is not None and self.base is not None:
            gains = ((self.previous - following) / self.base.clamp(min=FLOOR))[list(step.active)]
            if gains.isfinite().all():  # every task here was seen before
                self._remember(step, self.previous, self.action, following, gains.min())
        self.previous, self.action = following, self._drawn
        self.steps = self.steps + 1
        if self.epoch >= TRAIN_AFTER and self.steps % TRAIN_EVERY == 0 and self.stored > 0:
            self._train(step)

    def learn_epoch(self, averages: Tensor) -> None:
        if self.epoch >= BASE_EPOCH:
            # A task that was missing in that epoch is measured by the first one that it is in.
            self.base = fill(self.base, averages).to("cpu", torch.float32)

    def _draw(self, step: Step, losses: Tensor) -> Tensor:
        """Draw scores of all tasks, whose softmax are their shares of the weight."""
        order = by_name(step.tasks)
        scores = torch.empty(len(order))
        state = self._state(step, losses)
        if self.epoch < self.random_epochs or not state.isfinite().all():
            scores[order] = torch.randn(len(order), generator=self.generator)
            return scores
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            drawn, _, _ = self._agent(step).act(state[order], self.generator)
        scores[order] = drawn
        return scores

    def _state(self, step: Step, losses: Tensor) -> Tensor:
        """Return the losses of all tasks, of one that is missing the last one; NaN before its first."""
        last = torch.full((len(step.tasks),), torch.nan) if self.previous is None else self.previous.clone()
        last[list(step.active)] = losses.to("cpu", torch.float32)
        return last

    def _remember(self, step: Step, state: Tensor, action: Tensor, following: Tensor, reward: Tensor) -> None:
        order = by_name(step.tasks)
        if not (state.isfinite().all() and following.isfinite().all()):
            return
        transition = torch.cat([state[order], action[order], following[order], reward[None]])
        if self.memory is None:
            self.memory = torch.zeros(MEMORY, len(transition))
        self.memory[self.stored % MEMORY] = transition
        self.stored = self.stored + 1

    def _train(self, step: Step) -> None:
        assert self.memory is not None
        agent = self._agent(step)
        if self.optimizer is None:
            self.optimizer = self.make_optimizer()
        stored = min(int(self.stored), MEMORY)
        effort = (1 + stored / MEMORY) / 2
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            for _ in range(int(TRAIN_EVERY * effort)):
                chosen = torch.randint(stored, (int(BATCH_SIZE * effort),), generator=self.generator)
                agent.train_once(self.memory[chosen], self.optimizer, self.generator)

    def _agent(self, step: Step) -> SoftActorCritic:
        if self.agent is None:
            self.agent = SoftActorCritic(len(step.tasks), self.generator)
        return self.agent

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        biases = state_dict.get(f"{prefix}agent.actor.4.bias")
        if biases is not None and self.agent is None:
            self.agent = SoftActorCritic(len(biases) // 2, self.generator)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for name, buffer in self._buffers.items():  # the agent lives on the CPU, wherever the state comes from
            self._buffers[name] = None if buffer is None else buffer.cpu()
