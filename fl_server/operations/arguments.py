"""What each operation is given: validated, bounded, and the same types at both ends. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.wire.messages import KeyText, Sha256
from broker.wire.messages.base import MetricName, Settings
from runtime.bounds import MAX_FINITE, MAX_ROUNDS, MAX_TOTAL
from storage.bundles.bundle import MAX_BUNDLE_BYTES
from storage.versions.manifest import Label, Reason

MAX_MODEL_BYTES = 1 << 36
MAX_USES = 10_000
MAX_ADMITTED = 500
MAX_LABELS = 64
_LONGEST_INVITATION_S = 366 * 24 * 3600.0
_LONGEST_CANARY_S = 7 * 24 * 3600.0

Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
NameOrNone = Annotated[str, Field(pattern=r"^[a-z0-9_-]{0,64}$")]
VersionName = Annotated[str, Field(pattern=r"^[a-z0-9][a-zA-Z0-9:@._-]{0,160}$")]
DeviceIds = Annotated[list[Name], Field(min_length=1, max_length=MAX_ADMITTED)]
LabelName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_./-]{0,63}$")]
LabelValue = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f,*]*$")]
BundleName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}(@[0-9a-f]{1,64})?$")]


class Arguments(BaseModel):
    """The arguments of one operation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NoArguments(Arguments):
    """None."""


# --- members ----------------------------------------------------------------------------------


class Invitation(Arguments):
    """A join token to be made."""

    group: NameOrNone = ""
    project: Name = "default"
    uses: Annotated[int, Field(ge=1, le=MAX_USES)] = 1
    lifetime_s: Annotated[float, Field(ge=1, le=_LONGEST_INVITATION_S)] = 3600.0


class NewDevice(Arguments):
    """A device whose identity the operator made, on the site itself or for an external broker."""

    id: Name
    public_key: KeyText
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
    password: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,256}$", repr=False)]
    group: NameOrNone = ""
    index: Annotated[int, Field(ge=0, le=MAX_TOTAL)] = 0
    count: Annotated[int, Field(ge=1, le=MAX_TOTAL)] = 1


class NewDevices(Arguments):
    """Devices to be admitted together."""

    devices: Annotated[list[NewDevice], Field(max_length=MAX_ADMITTED)]


class OneDevice(Arguments):
    """Names a device."""

    device_id: Name


class Labelling(Arguments):
    """Labels to be given to devices, by name, and the names of those to be taken from them."""

    device_ids: DeviceIds
    labels: Annotated[dict[LabelName, LabelValue], Field(max_length=MAX_LABELS)] = {}
    remove: Annotated[list[LabelName], Field(max_length=MAX_LABELS)] = []


class Grouping(Arguments):
    """The group that devices are to be in, "" for none."""

    device_ids: DeviceIds
    group: NameOrNone


class LatestEntries(Arguments):
    """How many entries of the audit log."""

    last: Annotated[int, Field(ge=1, le=1_000_000)] = 200


class TopologyOf(Arguments):
    """How many members of each server are listed."""

    limit: Annotated[int, Field(ge=0, le=1_000_000)] = 100


class LatestRuns(Arguments):
    """How many runs. A command line of before this could be said lists them all."""

    last: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000_000


# --- runs -------------------------------------------------------------------------------------


class OneRun(Arguments):
    """Names a run."""

    run_id: Name


class Definition(Arguments):
    """A run definition, as in its TOML file, and version 0's size.

    ``parent`` is the sha256 of the version of this project that version 0 was made from, if any.
    """

    definition: Settings
    size_bytes: Annotated[int, Field(ge=1, le=MAX_MODEL_BYTES)]
    parent: Sha256 | None = None


class Extension(OneRun):
    """A run that has ended, and how many more rounds there shall be."""

    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)]


class RunSubmission(OneRun):
    """A prepared run, and the hash of the version 0 that was sent."""

    sha256: Sha256


# --- versions of models -----------------------------------------------------------------------


class VersionsOf(Arguments):
    """Which versions: of a run, of a task, or all."""

    run_id: NameOrNone = ""
    task: NameOrNone = ""


class OneVersion(Arguments):
    """Names a version: RUN:VERSION, RUN, TASK@production, a tag, or the start of its sha256."""

    name: VersionName


class StageChange(OneVersion):
    """A version that is to be in production, or is and should not be, and why."""

    reason: Reason = ""


class CanaryArguments(OneVersion):
    """A candidate for production and how it is tried.

    Attributes:
        share: of the devices that can measure it, above 0, at most 1.
        metric: empty for the one that runs of the task are compared by.
        max_drop: by how much the metric may be worse than in production.
    """

    share: Annotated[float, Field(gt=0, le=1)]
    metric: MetricName | Literal[""] = ""
    max_drop: Annotated[float, Field(ge=0, le=MAX_FINITE)]
    deadline_s: Annotated[float, Field(ge=1, le=_LONGEST_CANARY_S)]


class OneCanary(Arguments):
    """Names a canary."""

    canary_id: Name


class OfTask(Arguments):
    """A task; empty where only one has a version in production."""

    task: NameOrNone = ""


class Tagging(OneVersion):
    """A version and a label."""

    label: Label


class Cleaning(Arguments):
    """Whether to say only what would be removed."""

    dry_run: bool = False


# --- task bundles -----------------------------------------------------------------------------


class NewBundle(Arguments):
    """A bundle that is to be uploaded, or was."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=1, le=MAX_BUNDLE_BYTES)]


class OneBundle(Arguments):
    """Names a bundle: NAME, or NAME@ and the start of its sha256."""

    name: BundleName
