"""Federated algorithms, one file each: the server half and the client half side by side."""

from algorithms.registry import algorithm_class, load, names

__all__ = ["algorithm_class", "load", "names"]
