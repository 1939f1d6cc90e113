"""Partitions a data set over devices. Pure: the same seed gives the same parts everywhere.

Every function returns one sorted index array per device. The parts are disjoint and hold every
example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_client.datasets.splits.scheme import Examples, Scheme
from runtime.errors import ConfigError

Indices = NDArray[np.int64]


def divided(scheme: Scheme, examples: Examples, parts: int, seed: int) -> list[Indices]:
    """Return the parts that a scheme makes.

    Raises:
        ConfigError: the examples are too few, or the scheme needs to know their owners.
    """
    labels = _labels(examples.labels)
    count, value = labels.size, scheme.value or 0.0
    smallest = min(examples.min_size, count // max(1, parts))
    match scheme.kind:
        case "dirichlet":
            return dirichlet(labels, parts, value, seed, smallest)
        case "shards":
            return shards(labels, parts, int(value), seed)
        case "quantity":
            return quantity(count, parts, value, seed, smallest)
        case "natural" if examples.owners is not None:
            return natural(examples.owners, parts, seed)
        case "natural":
            raise ConfigError(
                "partition natural: this data set does not say whose an example is; take iid, "
                "dirichlet, shards or quantity"
            )
    return iid(count, parts, seed)


def iid(count: int, parts: int, seed: int) -> list[Indices]:
    """Partition ``count`` examples at random into parts whose sizes differ by at most one."""
    _check(count, parts, 1)
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(part) for part in np.array_split(order, parts)]


def dirichlet(
    labels: ArrayLike, parts: int, alpha: float, seed: int, min_size: int = 1
) -> list[Indices]:
    """Partition every class in proportions drawn from Dirichlet(``alpha``).

    A small ``alpha`` gives each device few classes. Parts below ``min_size`` are filled up, one
    random example at a time, from the part that is then the largest.

    Source: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", 2019, https://arxiv.org/abs/1909.06335.
    """
    found = _labels(labels)
    _check(found.size, parts, min_size)
    _check_alpha(alpha)
    generator = np.random.default_rng(seed)
    dealt: list[list[Indices]] = [[] for _ in range(parts)]
    for label in np.unique(found):
        members = generator.permutation(np.flatnonzero(found == label))
        shares = np.cumsum(generator.dirichlet(np.full(parts, alpha)))[:-1]
        cuts = np.round(shares * members.size).astype(np.int64)
        for part, piece in zip(dealt, np.split(members, cuts), strict=True):
            part.append(piece)
    filled = [np.concatenate(part) for part in dealt]
    _fill_up(filled, min_size, generator)
    return [np.sort(part) for part in filled]


def shards(labels: ArrayLike, parts: int, k: int, seed: int) -> list[Indices]:
    """Sort by label, cut into ``parts * k`` shards and give each device ``k`` of them.

    Source: McMahan et al., AISTATS 2017, section 3, https://arxiv.org/abs/1602.05629.
    """
    found = _labels(labels)
    if k < 1:
        raise ConfigError(f"k must be 1 or more shards a device, not {k}")
    _check(found.size, parts, k)
    generator = np.random.default_rng(seed)
    # shuffled first, so that a class's shards are not its examples in file order
    order = generator.permutation(found.size)
    order = order[np.argsort(found[order], kind="stable")]
    pieces = np.array_split(order, parts * k)
    dealt = generator.permutation(parts * k).reshape(parts, k)
    return [np.sort(np.concatenate([pieces[shard] for shard in own])) for own in dealt]


def quantity(count: int, parts: int, alpha: float, seed: int, min_size: int = 1) -> list[Indices]:
    """Partition at random into parts whose sizes are drawn from Dirichlet(``alpha``).

    The labels are as mixed everywhere as in the whole. Small parts are filled up as in
    ``dirichlet``.
    """
    _check(count, parts, min_size)
    _check_alpha(alpha)
    generator = np.random.default_rng(seed)
    order = generator.permutation(count)
    shares = np.cumsum(generator.dirichlet(np.full(parts, alpha)))[:-1]
    dealt = np.split(order, np.round(shares * count).astype(np.int64))
    _fill_up(dealt, min_size, generator)
    return [np.sort(part) for part in dealt]


def natural(owners: Sequence[Any] | NDArray[Any], parts: int, seed: int) -> list[Indices]:
    """Give each device what whole owners have: persons, sites, speaking roles.

    With fewer devices than owners, a device has several. With more, devices share an owner, and
    each has its own examples of it.
    """
    found = list(by_id(owners).values())
    held = [found[number] for number in np.random.default_rng(seed).permutation(len(found))]
    _check(sum(part.size for part in held), parts, 1)
    if parts <= len(held):
        return [np.sort(np.concatenate(held[index::parts])) for index in range(parts)]
    # the devices of an owner are those whose indices differ by a multiple of the owners
    return [
        held[index % len(held)][
            index // len(held) :: len(range(index % len(held), parts, len(held)))
        ]
        for index in range(parts)
    ]


def by_id(ids: Sequence[Any] | NDArray[Any]) -> dict[Any, Indices]:
    """Return the examples of each owner (a person, a site), in sorted order of the owners."""
    owners, inverse = np.unique(np.asarray(ids), return_inverse=True)
    return {
        owner.item(): np.flatnonzero(inverse.reshape(-1) == index)
        for index, owner in enumerate(owners)
    }


def _labels(labels: ArrayLike) -> NDArray[Any]:
    found = np.asarray(labels)
    if found.ndim != 1:
        raise ConfigError(f"labels must be one-dimensional, not of shape {found.shape}")
    return found


def _check(count: int, parts: int, min_size: int) -> None:
    if parts < 1:
        raise ConfigError(f"the number of parts must be 1 or more, not {parts}")
    if min_size < 0:
        raise ConfigError(f"the smallest part must be 0 or more, not {min_size}")
    if count < parts * min_size:
        raise ConfigError(
            f"{count} examples are too few for {parts} parts of at least {min_size} each"
        )


def _check_alpha(alpha: float) -> None:
    if not (np.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"alpha must be above 0, not {alpha}")


def _fill_up(parts: list[Indices], min_size: int, generator: np.random.Generator) -> None:
    """Move examples in place until every part has ``min_size``; ``_check`` ensures that it can."""
    sizes = [part.size for part in parts]
    while min(sizes) < min_size:
        smallest, largest = int(np.argmin(sizes)), int(np.argmax(sizes))
        moved = int(generator.integers(sizes[largest]))
        parts[smallest] = np.append(parts[smallest], parts[largest][moved])
        parts[largest] = np.delete(parts[largest], moved)
        sizes[smallest] += 1
        sizes[largest] -= 1
