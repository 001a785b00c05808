"""Independent component alignment of the gradients at the shared representation."""

from __future__ import annotations

from mtobal.strategies.base import RepresentationAggregation
from mtobal.strategies.card import Card
from mtobal.strategies.gradient.aligned_mtl import AlignedMTL
from mtobal.strategies.registry import register


@register("aligned_mtl_ub")
class AlignedMTLUB(RepresentationAggregation, AlignedMTL):
    """Follow the weights of `aligned_mtl` for the gradients with respect to the shared representation.

    Row k is ``dL_k / dz``, flattened over samples and features.

    Parameters
    ----------
    scale_mode : {"min", "median", "mean"}
        As in `aligned_mtl`.
    preference : mapping from task to float, or sequence of floats, optional
        As in `aligned_mtl`.
    eps : float
        As in `aligned_mtl`.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Follows the weights of aligned_mtl for the gradients with respect to the shared representation.",
        when="As aligned_mtl, at the cost of one backward pass through the encoder whatever the number of tasks. "
        "All decoders must read one representation.",
        paper="Senushkin et al., Independent Component Alignment for Multi-Task Learning, CVPR 2023, "
        "arXiv:2305.19000, the variant Aligned-MTL-UB.",
        defaults_source="As in aligned_mtl.",
        scale="sum",
        heads="raw",
    )
