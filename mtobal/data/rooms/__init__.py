"""Furnished rooms, rendered here: the dense tasks of NYUv2 on any machine."""

from mtobal.data.rooms.dataset import rooms

__all__ = ["rooms"]
