"""Federated algorithms, one file each: the server half and the client half side by side."""

from algorithms.registry import load, names

__all__ = ["load", "names"]
