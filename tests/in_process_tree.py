"""Domains in one process: groups of updates become one update each, at any depth."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, Union

from algorithms.base import Algorithm
from fl_server.aggregation.aggregator import AggregatedRun, RunAggregator, SubmittedUpdate
from fl_server.aggregation.model_cache import ModelCache
from fl_server.aggregation.partial import SumUp
from fl_server.aggregation.rules.base import Rule
from fl_server.aggregation.rules.mean import WeightedMean
from fl_server.aggregation.spool import MemoryBudget
from fl_server.rounds.model import Model, Update
from storage.store.memory import MemoryStore
from storage.updates.forwarded import answering, read_whole
from storage.updates.info import Origin
from storage.versions.keys import RunKeys
from tests.in_process import KEYS, KeepAll

Grouping: TypeAlias = Sequence[Union[int, "Grouping"]]


@dataclass
class Tree:
    """The server and its domains, over one store; a domain is named by its place, as "g-0-1".

    Attributes:
        name_of: what the domains call their devices upwards.
        restarts: every domain's process ends after it has added its first update.
        singly: domains pass updates on and do not sum them.
        rule: the root's.
    """

    folder: Path
    store: MemoryStore
    algorithm: Algorithm
    seed: int = 0
    name_of: Callable[[str], str] = str
    restarts: bool = False
    singly: bool = False
    rule: Rule = field(default_factory=WeightedMean)

    def __post_init__(self) -> None:
        self._made = 0
        self.root = self.server("root")

    def server(self, name: str) -> RunAggregator:
        self._made += 1
        name_of = str if name == "root" else self.name_of
        rule: dict[str, Any] = {"rule": self.rule} if name == "root" else {}
        keys = KEYS if name == "root" else RunKeys(f"p-{name}", KEYS.run_id)
        return RunAggregator(
            AggregatedRun(keys, self.algorithm, self.seed, 4, name_of=name_of, **rule),
            KeepAll(),
            self.store,
            ModelCache(self.folder / f"{name}-{self._made}", self.store),
            MemoryBudget(1 << 30 if self._made % 2 else 0),
        )

    def next_model(
        self, base: Model, updates: Sequence[SubmittedUpdate], grouping: Grouping
    ) -> Model:
        """Return what the root makes of the updates, which come to it grouped."""
        population = len(updates)
        sent = [self._sent(base, updates, each, f"g-{at}") for at, each in enumerate(grouping)]
        included = self._folded(self.root, base, sent)
        key = (base.version + 1, 1)
        model = self.root.aggregate(key, included, base, population)
        self.root.forget(key)
        return model

    def _sent(
        self, base: Model, updates: Sequence[SubmittedUpdate], what: int | Grouping, name: str
    ) -> SubmittedUpdate:
        if isinstance(what, int):
            return updates[what]
        sent = [self._sent(base, updates, each, f"{name}-{at}") for at, each in enumerate(what)]
        domain = self.server(name)
        if self.restarts:
            self._folded(domain, base, sent[:1])
            domain.forget((base.version + 1, 1))
            domain = self.server(name)
        included = self._folded(domain, base, sent[::-1])
        population = sum(each.update.population for each in sent)
        told = SumUp(population, {"loss": 1.0})
        key = (base.version + 1, 1)
        if self.singly:
            passed = {each.device_id: each.update for each in sent}
            summed = domain.pass_on(key, passed, base, told)
        else:
            summed = domain.sum_up(key, included, base, told)
        domain.forget((base.version + 1, 1))
        return submitted(self.store, summed, base, name, population)

    @staticmethod
    def _folded(
        server: RunAggregator, base: Model, sent: Sequence[SubmittedUpdate]
    ) -> tuple[str, ...]:
        for each in sent:
            server.verify(each, base)
            server.fold(each, base)
        return tuple(sorted(each.device_id for each in sent))


def submitted(
    store: MemoryStore,
    summed: Model,
    base: Model,
    name: str,
    population: int,
    keys: RunKeys = KEYS,
) -> SubmittedUpdate:
    """Return a domain's sums as its answer to an order."""
    number, out = base.version + 1, io.BytesIO()
    with store.open(summed.key) as stream:
        data = io.BytesIO(stream.read(1 << 30))
    header = read_whole(data, summed.key)
    origin = Origin(
        run_id=keys.run_id,
        round=number,
        attempt=1,
        device_id=name,
        base_sha256=base.sha256,
        layout_hash=header.layout_hash,
        kind=header.kind,
    )
    written = answering(data, header, origin, out)
    key = keys.update(number, 1, name)
    store.put(key, out.getvalue())
    update = Update(
        key,
        written.size_bytes,
        written.header_sha256,
        header.num_examples,
        population=population,
    )
    return SubmittedUpdate(name, number, 1, update)
