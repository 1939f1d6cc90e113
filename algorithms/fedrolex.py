"""FedRolex: HeteroFL whose narrow models roll over the units, so that all of them are trained.

Source: Alam et al., "FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model
Extraction", NeurIPS 2022, equation 2 and Algorithm 1, https://arxiv.org/abs/2212.01548. In round t
a device has the units of a layer of K from ``t mod K`` on, rounds counted from 0; after the last
comes the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from algorithms.heterofl import HeteroFL


@dataclass(frozen=True)
class FedRolex(HeteroFL):
    """HeteroFL in which every round begins one unit further on: weak devices alone train it all."""

    def first_unit(self, units: int, round_number: int) -> int:
        """Return ``t mod K``."""
        return (round_number - 1) % units
