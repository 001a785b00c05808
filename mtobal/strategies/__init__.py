"""The catalogue of strategies: one file a method, under the place of the step that it fills."""

from mtobal.strategies import gradient, loss, representation, sharpness, validation
from mtobal.strategies.base import (
    Aggregation,
    Direction,
    JacobianAggregation,
    LossWeighting,
    Perturbation,
    Regulariser,
    RepresentationAggregation,
    Revision,
    Step,
    Strategy,
    Validation,
)
from mtobal.strategies.card import Card
from mtobal.strategies.composition import Composition
from mtobal.strategies.functional import aggregate, weights
from mtobal.strategies.registry import available, register
from mtobal.strategies.spec import Spec, build

__all__ = [
    "Aggregation",
    "Card",
    "Composition",
    "Direction",
    "JacobianAggregation",
    "LossWeighting",
    "Perturbation",
    "Regulariser",
    "RepresentationAggregation",
    "Revision",
    "Spec",
    "Step",
    "Strategy",
    "Validation",
    "aggregate",
    "available",
    "build",
    "gradient",
    "loss",
    "register",
    "representation",
    "sharpness",
    "validation",
    "weights",
]
