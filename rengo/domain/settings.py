"""A domain's settings: those of a server, and what it is below its parent."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fl_server.settings import ServerConfig
from runtime.config import AbsolutePath
from storage.updates.info import MAX_REPORTS

# of one domain at most: its update has a report of each
_ALL = MAX_REPORTS


class DomainCohort(BaseModel):
    """Who of the domain's devices takes part in a round of the parent's.

    Attributes:
        size: how many; None: all that are online, up to what one update can tell of.
        quorum: the fewest whose sums the parent gets.
        gather_s: how long a round waits for more of them once the quorum is there.
        over_selection: devices that are invited for each one that is to take part.
        deadline_s: how long a round collects, where the parent does not say.
        max_attempts: attempts at one round before the run fails here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=1, le=_ALL)] | None = None
    quorum: Annotated[int, Field(ge=1, le=_ALL)] = 1
    gather_s: Annotated[float, Field(ge=0, le=604_800)] = 3.0
    over_selection: Annotated[float, Field(ge=1, le=10)] = 1.0
    deadline_s: Annotated[float, Field(gt=0, le=604_800)] = 120.0
    max_attempts: Annotated[int, Field(ge=1, le=100_000)] = 1000

    @model_validator(mode="after")
    def _quorum_fits(self) -> DomainCohort:
        if self.size is not None and self.quorum > self.size:
            raise ValueError(f"quorum {self.quorum} is more than size {self.size}")
        return self

    def section(self) -> dict[str, Any]:
        """Return it as a run's definition has it."""
        return {**self.model_dump(), "size": self.size or _ALL}


class ParentSection(BaseModel):
    """What a domain is told of its parent.

    Attributes:
        identity: its identity file as a device of the parent's.
        data_dir: where its jobs and its outbox for the parent lie.
        names: whether the parent may learn what the domain's devices are called; else each has a
            name that tells nothing.
        local_rounds: how many rounds the devices do for one of the parent's.
        labels: what the parent's runs may address the domain by.
        cohort: who of the devices takes part.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: AbsolutePath
    data_dir: AbsolutePath
    names: bool = False
    local_rounds: Annotated[int, Field(ge=1, le=1000)] = 1
    labels: Annotated[dict[str, Annotated[str, Field(max_length=2000)]], Field(max_length=64)] = {}
    cohort: DomainCohort = DomainCohort()


class DomainConfig(ServerConfig):
    """The settings of ``rengo domain``.

    Attributes:
        parent: what it is below its parent.
    """

    parent: ParentSection
