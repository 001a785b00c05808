"""A network whose widths are chosen at run time, by what may be computed and by which tasks matter most."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError, unknown_name
from mtobal.models.base import Inputs
from mtobal.models.decoders import DENSE, at_size_of, build_decoders
from mtobal.models.hard_sharing import HardSharing
from mtobal.models.resnet import Depth, resnet_for
from mtobal.models.slim_layers import SlimBatchNorm2d, SlimConv2d, SlimLinear, slim
from mtobal.tasks import Task

WIDTHS = (0.4, 0.5, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Configuration:
    """Widths of the encoder and of the decoder of each task, as shares of all channels."""

    encoder: float
    decoders: Mapping[str, float]


class Slimmable(HardSharing):
    """Hard sharing in which encoder and decoders use the first channels of every layer, as many as is chosen.

    The widest configuration is the network that was given. Batch norms keep running averages of that one alone:
    what a layer sees depends on all widths before it, and averages for every combination would each see few
    batches. In training a narrower one normalises by the batch; for evaluation its statistics are taken once by
    `recalibrate`, and kept until training goes on.

    Parameters
    ----------
    encoder : Module
        Of Conv2d without groups, BatchNorm2d, Linear, and parts without parameters. It is changed in place.
    decoders : mapping from str to Module
        Likewise; the last layer of each keeps its outputs at any width.
    input_shape : sequence of int
        Shape of one input, for the costs.
    widths : sequence of float
        Shares that can be chosen, among them 1.

    References
    ----------
    Aich, Schulter, Roy-Chowdhury, Chandraker and Suh, "Efficient Controllable Multi-Task Architectures", ICCV
    2023; Yu et al., "Slimmable Neural Networks", ICLR 2019.

    Examples
    --------
    >>> from mtobal.tasks import Classification
    >>> tasks = [Classification("left", num_classes=4), Classification("right", num_classes=4)]
    >>> model = slimmable((3, 32, 32), tasks, depth=18, width=10, decoder="mlp", decoder_channels=20)
    >>> model.configure(encoder=0.5, decoders={"left": 1.0, "right": 0.4})
    >>> model.encode(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 40, 1, 1])
    >>> model.cost(model.configuration) < model.cost(model.widest)
    True
    """

    configuration: Configuration
    encoder_calibrated: Tensor
    decoders_calibrated: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoders: Mapping[str, nn.Module],
        input_shape: Sequence[int],
        widths: Sequence[float] = WIDTHS,
    ) -> None:
        self.widths = tuple(sorted(widths))
        if not widths or self.widths[0] <= 0 or self.widths[-1] != 1:
            raise UsageError(f"widths should be shares above 0, the largest 1, not {list(widths)}.")
        choices = len(self.widths)
        super().__init__(
            slim(encoder, choices), {task: slim(decoder, choices**2) for task, decoder in decoders.items()}
        )
        for decoder in self.decoders.values():
            _products(decoder)[-1].keeps_outputs = True
        self.input_shape = tuple(input_shape)
        self.register_buffer("encoder_calibrated", torch.zeros(choices, dtype=torch.bool))
        self.register_buffer("decoders_calibrated", torch.zeros(len(decoders), choices**2, dtype=torch.bool))
        self._configure(self.widest)

    @property
    def widest(self) -> Configuration:
        """All channels."""
        return Configuration(1.0, dict.fromkeys(self.tasks, 1.0))

    @property
    def narrowest(self) -> Configuration:
        """The smallest share everywhere."""
        return Configuration(self.widths[0], dict.fromkeys(self.tasks, self.widths[0]))

    def decode(self, representation: Any, inputs: Inputs) -> dict[str, Tensor]:
        """Return the output of every task; a map is of the input's size."""
        assert isinstance(inputs, Tensor)
        return at_size_of(inputs, super().decode(representation, inputs))

    # ------------------------------------------------------------------ configurations

    def configure(self, encoder: float = 1.0, decoders: Mapping[str, float] | None = None) -> None:
        """Choose the width of the encoder and of decoders; those that are not named are all there.

        Parameters
        ----------
        encoder : float
            One of `widths`.
        decoders : mapping from task to float, optional
            Likewise.
        """
        for task in decoders or {}:
            if task not in self.tasks:
                raise unknown_name("task", task, self.tasks)
        chosen = {**self.widest.decoders, **(decoders or {})}
        for width in (encoder, *chosen.values()):
            if width not in self.widths:
                raise UsageError(f"configure: a width should be one of {list(self.widths)}, not {width}.")
        self._configure(Configuration(encoder, chosen))

    def sample(self, generator: torch.Generator | None = None) -> Configuration:
        """Draw the width of the encoder and of each decoder, all alike and independently."""
        drawn = torch.randint(len(self.widths), (1 + len(self.tasks),), generator=generator).tolist()
        encoder, *decoders = (self.widths[index] for index in drawn)
        return Configuration(encoder, dict(zip(self.tasks, decoders, strict=True)))

    def cost(self, configuration: Configuration) -> int:
        """Return the multiply-adds of convolutions and linear layers for one input, without biases."""
        encoder, decoders = self._costs
        return encoder[configuration.encoder] + sum(
            decoders[task, configuration.encoder, width] for task, width in configuration.decoders.items()
        )

    def search(
        self,
        budget: int,
        preferences: Mapping[str, float],
        score: Callable[[Configuration], float] | None = None,
    ) -> Configuration:
        """Find widths for a budget and preferences; they are not yet chosen.

        The most preferred task gets the widest decoder, any other the smallest width that is no smaller a share
        of this one than its preference is of the largest. Then the encoder gets what is left. Where even the
        narrowest does not fit, all decoders get narrower. The paper lets preferences decide on decoders and the
        budget on the encoder; these shares are chosen here.

        Parameters
        ----------
        budget : int
            Multiply-adds of one input.
        preferences : mapping from task to float
            Not negative, not all zero; a task that is left out counts as zero.
        score : callable, optional
            Says how good a configuration is: it should configure, recalibrate and validate. Then all that give the
            decoders their ranks and fit are compared, and the best is taken.

        Raises
        ------
        UsageError
            Nothing fits.
        """
        for task in preferences:
            if task not in self.tasks:
                raise unknown_name("task", task, self.tasks)
        if not preferences or min(preferences.values()) < 0 or not 0 < max(preferences.values()) < math.inf:
            raise UsageError(f"a preference must not be negative, nor all zero: {dict(preferences)}.")
        fitting = self._candidates(budget, preferences)
        found = next(fitting, None) if score is None else max(fitting, key=score, default=None)
        if found is None:
            raise UsageError(
                f"no configuration computes within {budget} multiply-adds: the narrowest takes "
                f"{self.cost(self.narrowest)}."
            )
        return found

    def _candidates(self, budget: int, preferences: Mapping[str, float]) -> Iterator[Configuration]:
        """Go through the configurations that follow the rule and fit, those of wide decoders first."""
        largest = max(preferences.values())
        for width in reversed(self.widths):
            decoders = {
                task: next(w for w in self.widths if w >= width * preferences.get(task, 0.0) / largest - 1e-9)
                for task in self.tasks
            }
            for encoder in reversed(self.widths):
                candidate = Configuration(encoder, decoders)
                if self.cost(candidate) <= budget:
                    yield candidate

    # ------------------------------------------------------------------ batch norms

    def recalibrate(self, batches: Iterable[Tensor]) -> None:
        """Take the statistics of the batch norms at the widths that are chosen, as means over batches of inputs.

        They stay with these widths, also in the state dict, until `train` is called. At the widest, the running
        averages of training are left as they are.
        """
        if self.training:
            raise UsageError("recalibrate: call eval() first; training would make the statistics stale.")
        norms = [norm for norm in self.modules() if isinstance(norm, SlimBatchNorm2d)]
        seen = 0
        try:
            with torch.no_grad():
                for seen, inputs in enumerate(batches, start=1):
                    if len(inputs) == 1:
                        raise UsageError("recalibrate: batches need two inputs or more, to normalise over them.")
                    for norm in norms:
                        norm.recalibrating = seen
                    self(inputs)
        finally:
            for norm in norms:
                norm.recalibrating = 0
        if not seen:
            raise UsageError("recalibrate: expected batches of inputs, got none.")
        encoder, decoders = self._slots(self.configuration)
        self.encoder_calibrated[encoder] = True
        self.decoders_calibrated[range(len(decoders)), decoders] = True
        self._configure(self.configuration)

    def train(self, mode: bool = True) -> Slimmable:
        """Set the mode; training forgets what `recalibrate` found."""
        super().train(mode)
        if mode:
            self.encoder_calibrated.fill_(False)
            self.decoders_calibrated.fill_(False)
            self._configure(self.configuration)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Restore parameters and statistics; the configuration stays what it is."""
        result = super().load_state_dict(state_dict, *args, **kwargs)
        self._configure(self.configuration)
        return result

    # ------------------------------------------------------------------ inside

    def _slots(self, configuration: Configuration) -> tuple[int, list[int]]:
        """Return where the batch norms of the encoder keep statistics, and where those of each decoder."""
        encoder = self.widths.index(configuration.encoder)
        return encoder, [
            encoder * len(self.widths) + self.widths.index(configuration.decoders[task]) for task in self.tasks
        ]

    def _configure(self, configuration: Configuration) -> None:
        self.configuration = configuration
        slot, slots = self._slots(configuration)
        encoder_widest = configuration.encoder == 1
        _set(self.encoder, configuration.encoder, None if encoder_widest else slot, self.encoder_calibrated[slot])
        for row, (task, slot) in enumerate(zip(self.tasks, slots, strict=True)):
            width = configuration.decoders[task]
            widest = encoder_widest and width == 1
            _set(self.decoders[task], width, None if widest else slot, self.decoders_calibrated[row, slot])

    @cached_property
    def _costs(self) -> tuple[dict[float, int], dict[tuple[str, float, float], int]]:
        """Multiply-adds of the encoder by width, and of decoders by task, the encoder's width and their own."""
        twin = copy.deepcopy(self).to("meta").eval()  # knows shapes alone
        for module in twin.modules():
            for name, part in module.named_children():
                if isinstance(part, SlimBatchNorm2d):
                    setattr(module, name, nn.Identity())
        inputs = torch.empty(1, *self.input_shape, device="meta")
        encoder_costs, decoder_costs = {}, {}
        for encoder in self.widths:
            for width in self.widths:
                twin.configure(encoder, dict.fromkeys(self.tasks, width))
                if width == self.widths[0]:
                    features, cost = _counted(twin.encoder, inputs)
                    encoder_costs[encoder] = cost
                for task in self.tasks:
                    _, decoder_costs[task, encoder, width] = _counted(twin.decoders[task], features)
        return encoder_costs, decoder_costs


def _products(module: nn.Module) -> list[SlimConv2d | SlimLinear]:
    return [part for part in module.modules() if isinstance(part, SlimConv2d | SlimLinear)]


def _set(module: nn.Module, width: float, slot: int | None, calibrated: Tensor) -> None:
    """Set the width of all layers of an encoder or decoder, and the place of their statistics."""
    ready = not calibrated.is_meta and bool(calibrated)
    for part in module.modules():
        if isinstance(part, SlimConv2d | SlimLinear):
            part.width = width
        elif isinstance(part, SlimBatchNorm2d):
            part.slot, part.ready = slot, ready


def _counted(module: nn.Module, inputs: Tensor) -> tuple[Tensor, int]:
    """Run a module on one input, and return the output with the multiply-adds."""
    total = 0

    def count(part: SlimConv2d | SlimLinear, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * part.products(inputs[0])

    handles = [part.register_forward_hook(count) for part in _products(module)]
    with torch.no_grad():
        output: Tensor = module(inputs)
    for handle in handles:
        handle.remove()
    return output, total


def slimmable(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    depth: Depth = 50,
    width: int = 64,
    decoder: Literal["aspp", "pixel_shuffle", "mlp"] = "aspp",
    decoder_channels: int = 256,
    widths: tuple[float, ...] = WIDTHS,
    weights: str | None = None,
) -> Slimmable:
    """Join a ResNet with one decoder a task, all of widths that are chosen at run time.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image.
    tasks : sequence of Task
        The tasks.
    depth : int
        18, 34, 50 or 101 layers.
    width : int
        Channels of the ResNet's first stage; 64 in the paper.
    decoder : {"aspp", "pixel_shuffle", "mlp"}
        The first two for dense tasks, on a dilated ResNet; the last for tasks with one label an image.
    decoder_channels : int
        Channels inside a decoder.
    widths : tuple of float
        Shares of the channels that can be chosen, among them 1.
    weights : str, optional
        File with pretrained weights of the ResNet under torchvision's names.
    """
    encoder = resnet_for(input_shape, depth=depth, width=width, weights=weights, dilated=decoder in DENSE)
    decoders = build_decoders(decoder, encoder.out_channels, tasks, decoder_channels)
    return Slimmable(encoder, decoders, input_shape, widths)
