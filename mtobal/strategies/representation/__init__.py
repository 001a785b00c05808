"""Strategies that regularise the shared representation."""

from mtobal.strategies.representation.rep_mtl import RepMTL

__all__ = ["RepMTL"]
