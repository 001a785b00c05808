"""The upper bound of multiple-gradient descent."""

from __future__ import annotations

from mtobal.strategies.base import RepresentationAggregation
from mtobal.strategies.card import Card
from mtobal.strategies.gradient.mgda import MGDA
from mtobal.strategies.registry import register


@register("mgda_ub")
class MGDAUB(RepresentationAggregation, MGDA):
    """Follow the weights of `mgda` for the gradients with respect to the shared representation.

    Row k is ``dL_k / dz``, flattened over samples and features. Its min-norm point bounds that of the encoder's
    gradients, and is zero with it where the Jacobian of the encoder has full rank.

    Parameters
    ----------
    normalization : {"none", "l2", "loss", "loss+"}
        As in `mgda`.
    apply_to : {"raw", "normalized"}
        As in `mgda`.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Follows the weights of mgda for the gradients with respect to the shared representation.",
        when="As mgda, at the cost of one backward pass through the encoder whatever the number of tasks. All "
        "decoders must read one representation, and it bounds the exact weights from afar where the encoder is "
        "much wider than its output.",
        paper="Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018, "
        "arXiv:1810.04650, section 3.3.",
        defaults_source="As in mgda.",
        scale="mean",
        heads="weighted",
    )
