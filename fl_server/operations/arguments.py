"""What an operation takes and returns: validated arguments in, plain data out, now or later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Result: TypeAlias = dict[str, Any]
RunId = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
PAGE_BYTES = 150_000


@dataclass(frozen=True)
class Deferred:
    """The answer comes later: ``work`` off the owner's thread, then ``then`` on it.

    Attributes:
        in_order: not beside the byte work of runs, but between it.
    """

    work: Callable[[], Any]
    then: Callable[[Any], Result | Deferred]
    in_order: bool = False


class Arguments(BaseModel):
    """The arguments of one operation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoArguments(Arguments):
    """None."""


class OneRun(Arguments):
    """Names a run."""

    run_id: RunId
