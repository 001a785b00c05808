from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mtobal
from mtobal import UsageError
from mtobal.strategies import Aggregation, LossWeighting, build, register
from mtobal.strategies.gradient import MGDA
from mtobal.strategies.loss import UW
from mtobal.strategies.registry import _REGISTRY


def test_places_are_filled_in_any_order() -> None:
    for spec in ("uw+pcgrad", "pcgrad+uw", {"pcgrad": None, "uw": {}}):
        strategy = build(spec)
        assert isinstance(strategy.loss_weighting, UW)
        assert strategy.aggregation is not None
        assert strategy.aggregation.card.name == "pcgrad"


def test_options_reach_the_strategy_from_text_and_from_yaml() -> None:
    for spec in ("mgda(normalization='loss+', scale=sum)", {"mgda": {"normalization": "loss+", "scale": "sum"}}):
        strategy = build(spec)
        assert isinstance(strategy.aggregation, MGDA)
        assert strategy.aggregation.normalization == "loss+"
        assert strategy.aggregation.scale == "sum"


@pytest.mark.parametrize(
    "spec",
    [
        *("cagrad(c=0)", "cosmos(penalty=0)", "cr_mogm(alpha=0)", "cr_mogm(alpha=1)", "db_mtl(beta=0)"),
        *("db_mtl(beta_sigma=0)", "dwa(window=1)", "fairgrad(alpha=0.05)", "fairgrad(alpha=20)", "famo(gamma=0)"),
        *("forum(rho=0)", "forum(inner_steps=1)", "go4align(num_groups=1)", "go4align(step_size=0)"),
        *("graddrop(leak=0)", "graddrop(leak=1)", "gradient_influence(rate=0)", "gradnorm(alpha=0)"),
        *("gradvac(beta=0)", "gradvac(beta=1)", "krum(n_byzantine=0)", "ldc_mtl(penalty=0)"),
        *("loss_reweight(burn_in=0)", "moco(beta=1)", "moco(rho=0)", "modo(rho=0)", "nash_mtl(max_norm=0)"),
        *("nash_mtl(update_weights_every=1)", "nlb(rate=0)", "nlb(rate=1)", "pbi(theta=0)", "sam(rho=0)"),
        *("samo(alpha=0)", "samo(alpha=1)", "sdmgrad(lamda=0)", "sdmgrad(momentum=0)", "sdmgrad(iterations=1)"),
        *("stch(warmup_epochs=0)", "trimmed_mean(trim=0)", "igb_v2(random_epochs=0)", "coba(warm_up=1, window=2)"),
    ],
)
def test_the_ends_of_a_range_belong_to_it(spec: str) -> None:
    assert build(spec).spec == spec


def test_an_instance_keeps_its_state() -> None:
    mine = UW(lr=0.1)
    assert build(mine).loss_weighting is mine
    assert build(build(mine)).loss_weighting is mine


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pcgard", "unknown strategy 'pcgard': did you mean 'pcgrad'"),
        ("", "cannot read strategy spec"),
        ("uw++pcgrad", "cannot read strategy spec"),
        ("nash-mtl", "name(option=value, ...)+name(...), with underscores in names"),
        ("PCGrad", "unknown strategy 'PCGrad': did you mean 'pcgrad'"),
        ("uw(", "cannot read strategy spec"),
        ("uw.pcgrad", "cannot read strategy spec"),
        ("uw(0.1)", "options are written name=value"),
        ("uw(**x)", "options are written name=value"),
        ("uw(learning_rate=1)", "strategy 'uw' has no option 'learning_rate'"),
        ("uw(lr=fast)", "strategy 'uw': lr should be a number, not 'fast'"),
        ("uw(lr=true)", "lr should be a number, not True"),
        ("uw(lr=-1)", "learning rate must be positive"),
        ("uw(form=huber)", "form should be one of 'half', 'laplace', not 'huber'"),
        ("pcgrad(seed=1.5)", "seed should be a whole number, not 1.5"),
        ("pcgrad(heads=both)", "heads should be one of 'raw', 'weighted' or none, not 'both'"),
        ("static", "needs a value for weights"),
        ("static(weights={seg: -1})", "must be finite and at least 0"),
        (
            "static(weights=[a, b])",
            "weights should be a mapping from names to a number or a list, each item a number",
        ),
        ("uw+ew", "'uw' and 'ew' both fill the place 'loss weighting'"),
        ("mgda+pcgrad", "both fill the place 'gradient aggregation'"),
        ({"uw": 3}, "options must be a mapping"),
        (3, "not as int"),
        (None, "not as NoneType"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(spec)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_no_text_crashes_the_parser(text: str) -> None:
    try:
        build(text)
    except UsageError:
        pass
    else:
        assert text.strip()


@given(
    seed=st.integers(-(2**40), 2**40),
    lr=st.floats(1e-9, 1e9),
    form=st.sampled_from(["half", "laplace"]),
    names=st.dictionaries(st.text(min_size=1, max_size=5), st.floats(0.5, 9), min_size=1, max_size=3),
)
def test_the_canonical_spec_reads_back_as_itself(seed: int, lr: float, form: str, names: dict[str, float]) -> None:
    for spec in ({"uw": {"lr": lr, "form": form}, "pcgrad": {"seed": seed}}, {"static": {"weights": names}}):
        once = build(spec)
        assert build(once.spec).spec == once.spec


def test_a_users_own_strategy_takes_one_class_and_one_method() -> None:
    @register("mine")
    class Mine(Aggregation):
        """Weigh by the inverse norm."""

        def solve(self, gramian, step):
            return 1 / gramian.diag().sqrt()

    try:
        card = mtobal.strategies.available()["mine"]
        assert (card.summary, card.place, card.reads) == (
            "Weigh by the inverse norm.",
            "gradient aggregation",
            "gramian",
        )
        found = mtobal.aggregate(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), "mine")
        torch.testing.assert_close(found, torch.tensor([0.6, 1.8]))
        with pytest.raises(UsageError, match="is taken by"):

            @register("mine")
            class Other(LossWeighting):
                pass

    finally:
        del _REGISTRY["mine"]


@pytest.mark.parametrize("name", ["Mine", "my-own", "", "1st"])
def test_a_strategy_name_is_snake_case(name: str) -> None:
    with pytest.raises(UsageError, match="snake case"):
        register(name)


def test_something_else_is_not_registered() -> None:
    with pytest.raises(UsageError, match="must be a LossWeighting or an Aggregation"):
        register("mine")(int)  # type: ignore[type-var]
