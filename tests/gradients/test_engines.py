"""Every engine, on every kind of layer, against autograd in float64 with one pass a task."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from mtobal import UsageError
from mtobal.gradients import Batched, TaskGradients, attach_backward, find_partition, ghost, loop
from mtobal.gradients.decoders import run_decoders
from mtobal.gradients.ghost import cheaper
from mtobal.gradients.layers import Sizes
from mtobal.gradients.rows import Rows

TASKS = ("a", "b", "c")
EVERYWHERE = partial(ghost, pays=lambda sizes, tasks: True)
ENGINES = {
    "loop": lambda: loop,
    "ghost": lambda: ghost,
    "ghost wherever there is a rule": lambda: EVERYWHERE,
    "batched": Batched,
    "batched in turns": lambda: Batched(memory=1),
}
every_engine = pytest.mark.parametrize("engine", ENGINES, indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Callable[..., TaskGradients]:
    return ENGINES[request.param]()


class Net(nn.Module):
    """Three decoders on a trunk; what comes out of the trunk is flattened for them."""

    def __init__(self, trunk: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.trunk = trunk
        with torch.no_grad():
            width = trunk(inputs).flatten(1).shape[1]
        self.heads = nn.ModuleDict({task: nn.Linear(width, 2) for task in TASKS})

    def losses(self, inputs: Tensor) -> list[Tensor]:
        features = torch.tanh(self.trunk(inputs).flatten(1))
        factors = (1.0, 30.0, -0.1)
        return [
            factor * (head(features) - index).square().mean()
            for index, (factor, head) in enumerate(zip(factors, self.heads.values(), strict=True))
        ]


class Apply(nn.Module):
    """A function of some modules, for what a sequence cannot say."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(self, inputs)


def tied() -> nn.Module:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


def tied_to_table() -> nn.Module:
    return Apply(
        lambda self, x: F.linear(torch.tanh(self.table(x)).mean(1), self.table.weight), table=nn.Embedding(9, 4)
    )


def attention(self: nn.Module, inputs: Tensor) -> Tensor:
    return self.attend(inputs, inputs, inputs)[0]


def cross_attention(self: nn.Module, inputs: Tensor) -> Tensor:
    return self.attend(inputs, inputs[:, :2], inputs[:, 1:3])[0]


def in_place(self: nn.Module, inputs: Tensor) -> Tensor:
    hidden = self.first(inputs)
    hidden.relu_()
    return self.second(hidden).sigmoid_()


def checkpointed(self: nn.Module, inputs: Tensor) -> Tensor:
    return checkpoint(self.inner, inputs, use_reentrant=False)


def shortened(gradient: Tensor) -> Tensor:
    return gradient / (1 + gradient.norm())


def hooked(self: nn.Module, inputs: Tensor) -> Tensor:
    """Hooks that are no linear functions, on what layers give and on what they read."""
    tensors = [self.first(inputs)]
    tensors.append(tensors[0].tanh())
    tensors.append(self.second(tensors[1]))
    for tensor in tensors:
        if tensor.requires_grad:
            tensor.register_hook(shortened)
    return tensors[2]


def with_complex_products(self: nn.Module, inputs: Tensor) -> Tensor:
    complex_inputs = torch.complex(inputs, inputs.flip(0))
    mixed = complex_inputs @ self.w.to(complex_inputs.dtype)
    return torch.view_as_real(mixed @ self.v.to(mixed.dtype)).flatten(1)


VECTORS, SEQUENCE, LINE = (5, 6), (5, 4, 6), (3, 4, 9)
IMAGE, VOLUME = (3, 4, 7, 6), (2, 2, 4, 5, 3)
WORDS = (5, 4)
conv = partial(nn.Conv2d, 4, 6)
TRUNKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4)), VECTORS),
    "linear without bias": (lambda: nn.Linear(6, 7, bias=False), VECTORS),
    "linear on a sequence": (lambda: nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4)), SEQUENCE),
    "linear on a strided sequence": (
        lambda: Apply(lambda self, x: self.inner(x.transpose(0, 1)).transpose(0, 1), inner=nn.Linear(6, 7)),
        SEQUENCE,
    ),
    "linear on one vector": (
        lambda: Apply(lambda self, x: self.inner(x[0])[None] + 0 * x[:, :1], inner=nn.Linear(6, 7)),
        VECTORS,
    ),
    "product with a matrix": (
        lambda: Apply(lambda self, x: x @ self.w, w=nn.Parameter(torch.randn(6, 3))),
        VECTORS,
    ),
    "product with a matrix on the left": (
        lambda: Apply(lambda self, x: (self.w @ x.T).T, w=nn.Parameter(torch.randn(3, 6))),
        VECTORS,
    ),
    "bilinear": (lambda: Apply(lambda self, x: self.inner(x, x), inner=nn.Bilinear(6, 6, 3)), VECTORS),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), LINE),
    "conv1d strided": (lambda: nn.Conv1d(4, 6, 4, stride=3, padding=2), LINE),
    "conv2d": (lambda: nn.Sequential(conv(3), nn.Tanh(), nn.Conv2d(6, 3, 2)), IMAGE),
    "conv2d pointwise": (lambda: conv(1, bias=False), IMAGE),
    "conv2d strided": (lambda: conv((3, 2), stride=(2, 3), padding=(1, 2)), IMAGE),
    "conv2d dilated": (lambda: conv(2, dilation=(3, 2), padding=1), IMAGE),
    "conv2d in groups": (lambda: conv(3, padding=1, groups=2), IMAGE),
    "conv2d in strided groups": (lambda: conv((2, 3), stride=2, dilation=2, padding=2, groups=2), IMAGE),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), IMAGE),
    "conv2d padded to the same size": (lambda: conv(3, padding="same", dilation=2), IMAGE),
    "conv2d padded in a circle": (lambda: conv(3, padding=1, padding_mode="circular"), IMAGE),
    "conv2d of one image": (
        lambda: Apply(lambda self, x: torch.stack([self.inner(i) for i in x]), inner=conv(3)),
        IMAGE,
    ),
    "conv2d channels last": (lambda: conv(3, padding=1).to(memory_format=torch.channels_last), IMAGE),
    "conv2d transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2), IMAGE),
    "conv3d": (
        lambda: nn.Conv3d(2, 4, (3, 2, 2), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 2, 1)),
        VOLUME,
    ),
    "conv3d in groups": (lambda: nn.Conv3d(2, 4, 2, groups=2), VOLUME),
    "embedding": (lambda: nn.Embedding(30, 4), WORDS),
    "embedding with padding": (lambda: nn.Embedding(30, 4, padding_idx=3), WORDS),
    "embedding in bags": (lambda: nn.EmbeddingBag(30, 4), WORDS),
    "embedding scaled by frequency": (lambda: nn.Embedding(30, 4, scale_grad_by_freq=True), WORDS),
    "embedding used twice": (
        lambda: Apply(
            lambda self, x: self.inner(x).tanh() * self.inner(x.flip(1))[:, :1], inner=nn.Embedding(50, 4)
        ),
        WORDS,
    ),
    "embedding tied to a linear layer": (tied_to_table, WORDS),
    "batch norm": (
        lambda: nn.Sequential(conv(3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 3, 2)),
        IMAGE,
    ),
    "batch norm on vectors": (lambda: nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7)), VECTORS),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3)), SEQUENCE),
    "group norm": (lambda: nn.Sequential(conv(3), nn.GroupNorm(2, 6), nn.Tanh()), IMAGE),
    "prelu": (lambda: nn.Sequential(nn.Linear(6, 7), nn.PReLU(7)), VECTORS),
    "attention": (lambda: Apply(attention, attend=nn.MultiheadAttention(6, 2, batch_first=True)), SEQUENCE),
    "attention to something else": (
        lambda: Apply(cross_attention, attend=nn.MultiheadAttention(6, 2, batch_first=True)),
        SEQUENCE,
    ),
    "attention with keys of another size": (
        lambda: Apply(
            lambda self, x: self.attend(x, x[..., :3], x[..., 3:])[0],
            attend=nn.MultiheadAttention(6, 2, kdim=3, vdim=3, add_bias_kv=True, batch_first=True),
        ),
        SEQUENCE,
    ),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True, norm_first=True),
        SEQUENCE,
    ),
    "gru": (lambda: Apply(lambda self, x: self.inner(x)[0], inner=nn.GRU(6, 3, batch_first=True)), SEQUENCE),
    "tied weights": (tied, VECTORS),
    "weights tied to their transpose": (
        lambda: Apply(
            lambda self, x: F.linear(F.linear(x, self.w).tanh(), self.w.T), w=nn.Parameter(torch.randn(6, 6))
        ),
        VECTORS,
    ),
    "a layer applied twice": (
        lambda: Apply(lambda self, x: self.inner(self.inner(x).tanh()), inner=nn.Linear(6, 6)),
        VECTORS,
    ),
    "a convolution applied to two sizes": (
        lambda: Apply(
            lambda self, x: self.inner(x).flatten(2).mean(2) + self.inner(x[..., ::2]).flatten(2).sum(2),
            inner=conv(3),
        ),
        IMAGE,
    ),
    "a weight that is also decayed": (
        lambda: Apply(lambda self, x: self.inner(x) + self.inner.weight.square().sum(), inner=nn.Linear(6, 6)),
        VECTORS,
    ),
    "a normalised weight": (lambda: parametrizations.weight_norm(nn.Linear(6, 7)), VECTORS),
    "complex weights": (
        lambda: Apply(
            with_complex_products,
            w=nn.Parameter(torch.randn(6, 3, dtype=torch.complex128)),
            v=nn.Parameter(torch.randn(3, 3)),
        ),
        VECTORS,
    ),
    "hooks on tensors": (lambda: Apply(hooked, first=nn.Linear(6, 7), second=nn.Linear(7, 4)), VECTORS),
    "in place": (lambda: Apply(in_place, first=nn.Linear(6, 7), second=nn.Linear(7, 4)), VECTORS),
    "checkpointed": (
        lambda: Apply(checkpointed, inner=nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4), nn.Tanh())),
        VECTORS,
    ),
    "frozen below": (
        lambda: nn.Sequential(nn.Linear(6, 7).requires_grad_(False), nn.Tanh(), nn.Linear(7, 4)),
        VECTORS,
    ),
    "a frozen weight with its bias": (
        lambda: Apply(
            lambda self, x: F.linear(x, self.w.detach(), self.b),
            w=nn.Parameter(torch.randn(7, 6)),
            b=nn.Parameter(torch.randn(7)),
        ),
        VECTORS,
    ),
}


def make(name: str, dtype: torch.dtype) -> tuple[Net, Tensor]:
    """A network and its input, the same numbers in every type."""
    build, shape = TRUNKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs = torch.randint(9, shape) if shape is WORDS else torch.randn(shape)
        net = Net(build(), inputs)
    # Complex weights stay as they are, which `nn.Module.to` would make real.
    return net.double() if dtype is torch.float64 else net, inputs if shape is WORDS else inputs.to(dtype)


def taken(engine: Callable[..., TaskGradients], net: nn.Module, losses: list[Tensor], cotangent: float = 1.0):
    partition = find_partition(losses, TASKS, net)
    return engine(losses, range(len(losses)), partition, torch.tensor(cotangent))


def by_hand(losses: list[Tensor], net: nn.Module) -> list[list[Tensor | None]]:
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    return [[g.to_dense() if g is not None and g.is_sparse else g for g in row] for row in rows]


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, in float64."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()


def assert_equals(
    engine: Callable[[], TaskGradients], reference: list[list[Tensor | None]], tolerance: float, scale: float = 1.0
) -> None:
    """Compare all that a balancer asks for with rows in float64."""
    gradients = engine()
    parameters = list(gradients.partition.parameters.values())
    mask = gradients.partition.shared_mask
    assert [len(tasks) for tasks in gradients.partition.reach] == [
        sum(gradient is not None for gradient in column) for column in zip(*reference, strict=True)
    ]
    reference = [[None if g is None else real(g) for g in row] for row in reference]
    zeros = [torch.zeros_like(real(parameter)) for parameter in parameters]
    rows = [
        torch.cat(
            [(zero if g is None else g).flatten() for g, zero, own in zip(row, zeros, mask, strict=True) if own]
        )
        for row in reference
    ]
    jacobian = torch.stack(rows)
    sizes = jacobian.norm(dim=1)
    gramian = gradients.gramian()
    assert gramian.dtype == torch.float64
    assert ((gramian - jacobian @ jacobian.T).abs() <= tolerance * sizes[:, None] * sizes).all()

    found = gradients.jacobian()
    assert list(found.names) == list(gradients.partition.shared)
    assert (
        (torch.cat([block.double() for block in found.blocks], 1) - jacobian).norm(dim=1) <= tolerance * sizes
    ).all()

    weights, heads = [0.5, -2.0, 3.0], [2.0, 1.0, -1.0]
    direction = [torch.tensor(weights).to(block) @ block for block in found.blocks]
    for final in (gradients.insert(direction, heads), gradients.combine(weights, heads)):
        terms = [
            [w * g for w, g in zip(weights if shared else heads, column, strict=True) if g is not None]
            for shared, column in zip(mask, zip(*reference, strict=True), strict=True)
        ]
        size = sum(term.norm() for column in terms for term in column)
        for parameter, gradient, column in zip(parameters, final, terms, strict=True):
            assert (gradient is None) == (not column)
            if gradient is not None:
                assert (gradient.dtype, gradient.shape) == (parameter.dtype, parameter.shape)
                assert (real(gradient) / scale - sum(column)).norm() <= tolerance * size


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["32", "64"])
@every_engine
@pytest.mark.parametrize("name", TRUNKS)
def test_it_equals_a_loop_in_float64(name: str, engine, dtype: torch.dtype, tolerance: float) -> None:
    exact, inputs = make(name, torch.float64)
    reference = by_hand(exact.losses(inputs), exact)
    net, inputs = make(name, dtype)
    assert_equals(lambda: taken(engine, net, net.losses(inputs)), reference, tolerance)


@pytest.mark.filterwarnings("ignore:gradients='batched'. vmap does not go through:RuntimeWarning")
@every_engine
@pytest.mark.parametrize("table", [nn.Embedding, nn.EmbeddingBag], ids=["embedding", "in bags"])
def test_sparse_gradients(table: type[nn.Module], engine) -> None:
    net = Net(table(30, 4, sparse=True, padding_idx=3), torch.zeros(5, 4, dtype=torch.long)).double()
    inputs = torch.arange(20).reshape(5, 4) % 9
    gradients = taken(engine, net, net.losses(inputs))
    is_kept = not all(isinstance(piece, Rows) for piece in gradients.pieces)
    assert is_kept == (table is nn.Embedding and engine in (ghost, EVERYWHERE))
    compare(engine, lambda net: net.losses(inputs), net)


# Of the other parameters of these trunks, gradients are written out.
KEPT = {
    "linear on a strided sequence": ["inner.weight"],
    "product with a matrix": ["w"],
    "product with a matrix on the left": [],
    "conv2d in strided groups": ["weight"],
    "conv2d transposed": [],
    "conv3d": ["weight"],
    "embedding with padding": ["weight"],
    "embedding used twice": ["inner.weight"],
    "embedding scaled by frequency": [],
    "complex weights": [],
    "hooks on tensors": ["first.weight", "second.weight"],
    "embedding tied to a linear layer": [],
    "batch norm": ["0.weight", "3.weight"],
    "attention": ["attend.in_proj_weight", "attend.out_proj.weight"],
    "attention to something else": ["attend.out_proj.weight"],
    "gru": ["inner.weight_ih_l0", "inner.weight_hh_l0"],
    "tied weights": ["0.weight"],
    "weights tied to their transpose": [],
    "a layer applied twice": ["inner.weight"],
    "a weight that is also decayed": [],
    "a normalised weight": [],
    "checkpointed": ["inner.0.weight", "inner.2.weight"],
}


@pytest.mark.parametrize("name", KEPT)
def test_weights_that_ghost_keeps_as_inputs_and_cotangents(name: str) -> None:
    net, inputs = make(name, torch.float64)
    gradients = taken(EVERYWHERE, net, net.losses(inputs))
    names = list(gradients.partition.parameters)
    kept = [names[place] for piece in gradients.pieces if not isinstance(piece, Rows) for place in piece.places]
    assert kept == [f"trunk.{weight}" for weight in KEPT[name]]


def test_ghost_keeps_what_is_cheaper() -> None:
    few, many = Sizes(1, 32, 512, 512), Sizes(1, 32 * 1024, 64, 64)
    for tasks in (2, 3, 10, 40):
        assert cheaper(few, tasks)
        assert not cheaper(many, tasks)


def compare(engine, losses: Callable[[nn.Module], list[Tensor]], net: nn.Module, cotangent: float = 1.0) -> None:
    reference = by_hand(losses(net), net)
    assert_equals(lambda: taken(engine, net, losses(net), cotangent), reference, 1e-12, cotangent)


class Branches(nn.Module):
    """A trunk, a branch that two of three tasks share, and decoders; one of them uses the trunk's weight again."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.branch = nn.Linear(6, 6), nn.Linear(6, 5)
        self.heads = nn.ModuleList([nn.Linear(6, 1), nn.Linear(5, 1), nn.Linear(5, 1)])
        self.double()


POINTS = torch.linspace(-1, 1, 42, dtype=torch.float64).reshape(7, 6)


def branching(net: Branches) -> list[Tensor]:
    trunk = net.trunk(POINTS).tanh()
    branch = net.branch(trunk).tanh()
    first, second, third = net.heads
    return [first(trunk).square().sum(), second(branch).sum(), third(branch).exp().mean()]


def using_the_trunk_twice(net: Branches) -> list[Tensor]:
    first, *others = branching(net)
    return [first + net.trunk(POINTS.sin()).square().mean(), *others]


def with_features_of_two_depths(net: Branches) -> list[Tensor]:
    trunk = net.trunk(POINTS).tanh()
    branch = net.branch(trunk).tanh()
    return [head(trunk[:, : head.in_features]).sum() + branch.pow(n).sum() for n, head in enumerate(net.heads, 1)]


def one_after_another(net: Branches) -> list[Tensor]:
    first, second, third = branching(net)
    return [first * second, first, second + third]


def all_the_same(net: Branches) -> list[Tensor]:
    first, second, _ = branching(net)
    return [first, first, second]


def without_decoders(net: Branches) -> list[Tensor]:
    trunk = net.trunk(POINTS)
    return [trunk.sum(), trunk.square().sum(), trunk[0, 0]]


def a_batch_per_task(net: Branches) -> list[Tensor]:
    inputs = [POINTS, POINTS[:3].cos(), POINTS[2:].sin()]
    trunks = [net.trunk(each).tanh() for each in inputs]
    first, second, third = net.heads
    return [
        first(trunks[0]).square().sum(),
        second(net.branch(trunks[1])).sum(),
        third(net.branch(trunks[2])).std(),
    ]


def one_decoder_for_all(net: Branches) -> list[Tensor]:
    return [
        net.heads[0](net.trunk(inputs).tanh()).square().mean() for inputs in (POINTS, POINTS.cos(), POINTS[:2])
    ]


def through_a_leaf(net: Branches) -> list[Tensor]:
    weight = net.trunk.weight
    return [weight[0, 0], weight.square().sum(), net.trunk.bias.sum() + weight.sum()]


def a_parameter_as_a_loss(net: Branches) -> list[Tensor]:
    _, second, third = branching(net)
    return [net.heads[0].bias, second * net.heads[2].bias.sum(), third]


def with_hooks_on_tensors(net: Branches) -> list[Tensor]:
    trunk = net.trunk(POINTS).tanh()
    branch = net.branch(trunk).tanh()
    first, second, third = net.heads
    losses = [first(trunk).square().sum() + trunk.exp().mean(), second(branch).sum(), third(branch).exp().mean()]
    for factor, tensor in zip((-2.0, 3.0, 0.5), (trunk, branch, losses[0]), strict=True):
        tensor.register_hook(lambda gradient, factor=factor: factor * gradient)
    return losses


def one_operation_for_all_losses(net: Branches) -> list[Tensor]:
    return list(torch.stack(branching(net)).unbind())


def with_second_derivatives(net: Branches) -> list[Tensor]:
    points = POINTS.clone().requires_grad_()
    trunk = net.trunk(points).tanh()
    first, second, third = net.heads
    branch = net.branch(trunk).tanh()
    [slope] = torch.autograd.grad(second(branch).sum(), points, create_graph=True)
    [bend] = torch.autograd.grad(slope[:, 0].sum(), points, create_graph=True)
    return [first(trunk).square().sum(), slope.square().mean(), (third(branch) - bend).square().mean()]


STRUCTURES = (
    *(branching, using_the_trunk_twice, with_features_of_two_depths, one_after_another, all_the_same),
    *(without_decoders, a_batch_per_task, one_decoder_for_all, through_a_leaf, a_parameter_as_a_loss),
    *(with_hooks_on_tensors, one_operation_for_all_losses, with_second_derivatives),
)


@pytest.mark.parametrize("cotangent", [1.0, 0.25])
@pytest.mark.parametrize("losses", STRUCTURES, ids=lambda losses: losses.__name__)
@every_engine
def test_however_the_tasks_share(engine, losses, cotangent: float) -> None:
    compare(engine, losses, Branches(), cotangent)


@every_engine
def test_dropout_and_batch_norm_draw_once(engine) -> None:
    """All tasks see the same forward pass, so each engine must differentiate that one."""
    net, inputs = make("batch norm", torch.float64)
    net.trunk.append(nn.Dropout(0.5))

    def losses(net: nn.Module) -> list[Tensor]:
        torch.manual_seed(3)
        return net.losses(inputs)

    compare(engine, losses, net)


@every_engine
def test_frozen_parameters_and_a_missing_task(engine) -> None:
    net = Branches()
    net.trunk.weight.requires_grad_(False)
    net.heads[1].bias.requires_grad_(False)
    compare(engine, branching, net)
    partition = find_partition(branching(net), TASKS, net)
    first, _, third = branching(net)
    gradients = engine([first, third], (0, 2), partition, torch.tensor(1.0))
    assert gradients.partition is partition
    first, _, third = branching(net)
    bias = [torch.autograd.grad(loss, net.trunk.bias, retain_graph=True)[0] for loss in (first, third)]
    branch = torch.autograd.grad(third, net.branch.weight, retain_graph=True)[0]
    names = list(partition.parameters)
    final = gradients.combine([2.0, 3.0], [1.0, 1.0])
    torch.testing.assert_close(final[names.index("trunk.bias")], 2 * bias[0] + 3 * bias[1])
    torch.testing.assert_close(final[names.index("branch.weight")], 3 * branch)
    assert final[names.index("heads.1.weight")] is None


@every_engine
def test_one_task_alone(engine) -> None:
    net = Branches()
    partition = find_partition(branching(net), TASKS, net)
    gradients = engine(branching(net)[2:], (2,), partition, torch.tensor(1.0))
    third = branching(net)[2]
    expected = torch.autograd.grad(third, list(net.parameters()), allow_unused=True)
    shared = [g.square().sum() for g, mask in zip(expected, partition.shared_mask, strict=True) if mask]
    torch.testing.assert_close(gradients.gramian(), sum(shared).reshape(1, 1))
    for found, wanted in zip(gradients.combine([1.0], [1.0]), expected, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(found, wanted)


@every_engine
def test_an_infinite_gradient_without_weight_stays_out(engine) -> None:
    net = Branches()

    def losses() -> list[Tensor]:
        first, second, third = branching(net)
        trunk = net.trunk(POINTS)
        return [first, second, third + (trunk - trunk.detach()).sqrt().sum()]

    gramian = taken(engine, net, losses()).gramian()
    assert gramian[:2, :2].isfinite().all()
    assert not gramian[2, 2].isfinite()
    final = taken(engine, net, losses()).combine([1.0, 1.0, 0.0], [1.0, 1.0, 0.0])
    names = [name for name, _ in net.named_parameters()]
    assert all(final[names.index(name)].isfinite().all() for name in ("trunk.weight", "trunk.bias"))


@every_engine
def test_half_precision_under_autocast(engine) -> None:
    """To the rounding of bfloat16; gradients have the type of their parameters."""
    net, inputs = make("batch norm", torch.float32)

    def losses() -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return [loss.float() for loss in net.losses(inputs)]

    reference = [[None if g is None else g.double() for g in row] for row in by_hand(losses(), net)]
    assert_equals(lambda: taken(engine, net, losses()), reference, 2e-2)


@every_engine
def test_a_compiled_part(engine) -> None:
    net, inputs = make("linear", torch.float64)
    reference = by_hand(net.losses(inputs), net)
    net.trunk[0] = torch.compile(net.trunk[0], backend="aot_eager")
    assert_equals(lambda: taken(engine, net, net.losses(inputs)), reference, 1e-12)


@every_engine
def test_a_hook_on_a_parameter_waits_for_the_final_gradient(engine) -> None:
    net = Branches()
    reference = by_hand(branching(net), net)
    seen: list[Tensor] = []
    for parameter in (net.trunk.weight, net.trunk.bias, net.heads[0].weight):
        parameter.register_hook(seen.append)
    assert_equals(lambda: taken(engine, net, branching(net)), reference, 1e-12)
    assert not seen
    branching(net)[0].backward()
    assert len(seen) == 3


@every_engine
def test_a_reentrant_checkpoint_is_refused(engine) -> None:
    net = Branches()
    points = POINTS.clone().requires_grad_()  # so that the checkpoint is in the graph, and its parameters are not
    trunk = net.branch(checkpoint(net.trunk, points, use_reentrant=True))
    with pytest.raises(UsageError, match="a reentrant checkpoint hides its parameters"):
        taken(engine, net, [trunk.sum(), trunk.square().sum()])


@every_engine
def test_a_parameter_outside_of_the_model_that_comes_later_is_refused(engine) -> None:
    net, scale = Branches(), nn.Parameter(torch.ones(7, 1, dtype=torch.float64))
    partition = find_partition(branching(net), TASKS, net)
    first, *others = branching(net)
    with pytest.raises(UsageError, match=r"a parameter of shape \(7, 1\) outside of the model"):
        engine([first * scale.sum(), *others], range(3), partition, torch.tensor(1.0))


@every_engine
def test_a_checkpointed_trunk_inside_a_backward_pass(engine) -> None:
    """There each saved tensor can be unpacked once, as the outer pass is the one that recomputes."""
    net, inputs = make("checkpointed", torch.float64)
    reference = by_hand(net.losses(inputs), net)
    values = net.losses(inputs)
    found: list[TaskGradients] = []

    def backward(cotangent: Tensor) -> list[Tensor | None]:
        found.append(taken(engine, net, values))
        return found[0].combine([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])

    attach_backward(torch.zeros(()), backward, list(net.parameters())).backward()
    for parameter, column in zip(net.parameters(), zip(*reference, strict=True), strict=True):
        torch.testing.assert_close(parameter.grad, sum(g for g in column if g is not None))


@every_engine
def test_decoders_run_backward_once_and_let_go(engine) -> None:
    """What a decoder saved is freed before the trunk runs."""
    order: list[str] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor: Tensor, name: str) -> Tensor:
            ctx.name = name
            return tensor.clone()

        @staticmethod
        def backward(ctx, cotangent: Tensor) -> tuple[Tensor, None]:
            order.append(ctx.name)
            return cotangent, None

    net = Branches()
    features = net.trunk(POINTS)
    trunk = Watched.apply(features.tanh(), "trunk")
    heads = [nn.Linear(6, 1).double() for _ in TASKS]
    losses = [Watched.apply(head(trunk), f"decoder {task}").mean() for task, head in enumerate(heads)]
    gradients = taken(engine, net, losses)
    assert order[:3] == ["decoder 0", "decoder 1", "decoder 2"]
    assert set(order[3:]) == {"trunk"}
    assert losses == []
    del trunk
    alive = weakref.ref(features)
    del features
    gc.collect()
    assert gradients.gramian().shape == (3, 3)
    assert alive() is None


def test_batched_says_when_vmap_does_not_go_through() -> None:
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor: Tensor) -> Tensor:
            return tensor.clone()

        @staticmethod
        def backward(ctx, cotangent: Tensor) -> Tensor:
            return cotangent * float(cotangent.abs().sum() > 0)  # looks at values, which vmap cannot

    net, engine = Branches(), Batched()

    def losses() -> list[Tensor]:
        trunk = Opaque.apply(net.trunk(POINTS))
        return [trunk.sum(), trunk.square().sum(), net.heads[0](trunk).sum()]

    reference = by_hand(losses(), net)
    with pytest.warns(RuntimeWarning, match="vmap does not go through this model .* one pass a task instead"):
        taken(engine, net, losses())
    assert_equals(lambda: taken(engine, net, losses()), reference, 1e-12)  # and says so once

    later = Batched()  # for which the operation comes in a later step
    taken(later, net, branching(net))
    with pytest.warns(RuntimeWarning, match="one pass a task instead"):
        assert_equals(lambda: taken(later, net, losses()), reference, 1e-12)


@pytest.mark.parametrize("cotangent", [1.0, 0.25])
@pytest.mark.parametrize("losses", STRUCTURES, ids=lambda losses: losses.__name__)
def test_with_known_weights_one_pass_is_enough(losses, cotangent: float) -> None:
    net = Branches()
    partition = find_partition(losses(net), TASKS, net)
    weights, heads = [0.5, 0.0, 3.0], [2.0, 1.0, -1.0]
    expected = loop(losses(net), range(3), partition, torch.tensor(cotangent)).combine(weights, heads)
    found = run_decoders(losses(net), range(3), partition, torch.tensor(cotangent)).combine(weights, heads)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
