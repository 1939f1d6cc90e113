"""The operations: each with its arguments, its result, who may do it, and what it changes. Pure.

Both ends read this table: the server binds a handler to each operation, a client checks by it what
it sends and what comes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from fl_server.operations import arguments as given
from fl_server.operations.results import bundles, members, models, runs, topology
from fl_server.operations.results.base import OperationResult

A = TypeVar("A", bound=given.Arguments)
R = TypeVar("R", bound=OperationResult)
CallerRole: TypeAlias = Literal["viewer", "operator"]
_MAY_ACT_AS: dict[CallerRole, frozenset[CallerRole]] = {
    "viewer": frozenset({"viewer"}),
    "operator": frozenset({"viewer", "operator"}),
}


class Effect(Enum):
    """What an operation changes, and so what is done with a request that comes again."""

    NONE = "none"
    """Nothing: it is carried out again."""
    DERIVED = "derived"
    """It makes something whose id follows from the request, and its answer holds secrets or URLs
    that are not to be stored: it is carried out again, finds what it made, and answers the same."""
    RECORDED = "recorded"
    """The database alone, or what can be done twice with the effect of once: the answer is stored,
    where possible in the transaction of the effect, and a request that comes again gets it."""
    RESUMED = "resumed"
    """The object store: the request is stored before the first step. What a kill interrupted is
    completed at the next start, before any other operation changes something."""


@dataclass(frozen=True)
class Operation(Generic[A, R]):
    """One operation. ``role`` is the least that its caller must have."""

    name: str
    arguments: type[A]
    result: type[R]
    effect: Effect = Effect.NONE
    role: CallerRole = "operator"


def may_act_as(has: CallerRole, needed: CallerRole) -> bool:
    """Whether who has one role may do what needs another."""
    return needed in _MAY_ACT_AS[has]


SERVER_INFO = Operation("server_info", given.NoArguments, members.ServerInfo, Effect.NONE, "viewer")
DEVICES_LS = Operation("devices_ls", given.NoArguments, members.DeviceList, Effect.NONE, "viewer")
TOPOLOGY = Operation("topology", given.TopologyOf, topology.Topology, Effect.NONE, "viewer")
DEVICES_INVITE = Operation("devices_invite", given.Invitation, members.NewToken, Effect.DERIVED)
DEVICES_ADMIT = Operation("devices_admit", given.NewDevices, members.Admitted, Effect.RECORDED)
DEVICES_ROTATE = Operation("devices_rotate", given.OneDevice, members.Rotation, Effect.RECORDED)
DEVICES_REVOKE = Operation("devices_revoke", given.OneDevice, members.Revoked, Effect.RECORDED)
DEVICES_LABEL = Operation(
    "devices_label", given.Labelling, members.LabelledDevices, Effect.RECORDED
)
DEVICES_GROUP = Operation("devices_group", given.Grouping, members.Grouped, Effect.RECORDED)
AUDIT_LS = Operation("audit_ls", given.LatestEntries, members.AuditLog, Effect.NONE, "viewer")
AUDIT_VERIFY = Operation(
    "audit_verify", given.NoArguments, members.AuditVerified, Effect.NONE, "viewer"
)

RUNS_LS = Operation("runs_ls", given.LatestRuns, runs.RunList, Effect.NONE, "viewer")
RUNS_SHOW = Operation("runs_show", given.OneRun, runs.RunReport, Effect.NONE, "viewer")
RUNS_DEVICES = Operation("runs_devices", given.OneRun, runs.RunAddressed, Effect.NONE, "viewer")
RUNS_PREPARE = Operation("runs_prepare", given.Definition, runs.RunUpload, Effect.DERIVED)
RUNS_RENEW = Operation("runs_renew", given.OneRun, runs.RunUpload)
RUNS_SUBMIT = Operation("runs_submit", given.RunSubmission, runs.RunStarted, Effect.RECORDED)
RUNS_EXTEND = Operation("runs_extend", given.Extension, runs.RunStarted, Effect.RECORDED)
RUNS_PAUSE = Operation("runs_pause", given.OneRun, runs.RunSummary, Effect.RECORDED)
RUNS_RESUME = Operation("runs_resume", given.OneRun, runs.RunSummary, Effect.RECORDED)
RUNS_STOP = Operation("runs_stop", given.OneRun, runs.RunSummary, Effect.RECORDED)

MODELS_LS = Operation("models_ls", given.VersionsOf, models.ModelList, Effect.NONE, "viewer")
MODELS_SET_ASIDE = Operation(
    "models_set_aside", given.NoArguments, models.SetAsideList, Effect.NONE, "viewer"
)
MODELS_SHOW = Operation("models_show", given.OneVersion, models.ModelDetail, Effect.NONE, "viewer")
MODELS_PRODUCTION = Operation(
    "models_production", given.OfTask, models.ModelRow, Effect.NONE, "viewer"
)
MODELS_URL = Operation("models_url", given.OneVersion, models.ModelUrl)
MODELS_PROMOTE = Operation("models_promote", given.StageChange, models.ModelRow, Effect.RESUMED)
MODELS_ROLLBACK = Operation("models_rollback", given.StageChange, models.ModelRow, Effect.RESUMED)
MODELS_TAG = Operation("models_tag", given.Tagging, models.ModelRow, Effect.RESUMED)
MODELS_UNTAG = Operation("models_untag", given.Tagging, models.ModelRow, Effect.RESUMED)
MODELS_RM = Operation("models_rm", given.OneVersion, models.ModelRow, Effect.RESUMED)
MODELS_DISCARD = Operation("models_discard", given.OneVersion, models.SetAside, Effect.RESUMED)
MODELS_GC = Operation("models_gc", given.Cleaning, models.CleanupReport, Effect.RESUMED)
CANARY_BEGIN = Operation("canary_begin", given.CanaryArguments, models.CanaryBegun, Effect.RECORDED)
CANARY_SHOW = Operation("canary_show", given.OneCanary, models.CanaryReport, Effect.NONE, "viewer")

BUNDLES_LS = Operation("bundles_ls", given.NoArguments, bundles.BundleList, Effect.NONE, "viewer")
BUNDLES_PREPARE = Operation("bundles_prepare", given.NewBundle, bundles.BundleUpload)
BUNDLES_KEEP = Operation("bundles_keep", given.NewBundle, bundles.BundleRow, Effect.RESUMED)
BUNDLES_FIND = Operation("bundles_find", given.OneBundle, bundles.BundleUrl)
BUNDLES_RM = Operation("bundles_rm", given.OneBundle, bundles.BundleRow, Effect.RESUMED)

OPERATIONS: dict[str, Operation[Any, Any]] = {
    each.name: each
    for each in (
        SERVER_INFO,
        DEVICES_LS,
        TOPOLOGY,
        DEVICES_INVITE,
        DEVICES_ADMIT,
        DEVICES_ROTATE,
        DEVICES_REVOKE,
        DEVICES_LABEL,
        DEVICES_GROUP,
        AUDIT_LS,
        AUDIT_VERIFY,
        RUNS_LS,
        RUNS_SHOW,
        RUNS_DEVICES,
        RUNS_PREPARE,
        RUNS_RENEW,
        RUNS_SUBMIT,
        RUNS_EXTEND,
        RUNS_PAUSE,
        RUNS_RESUME,
        RUNS_STOP,
        MODELS_LS,
        MODELS_SET_ASIDE,
        MODELS_SHOW,
        MODELS_PRODUCTION,
        MODELS_URL,
        MODELS_PROMOTE,
        MODELS_ROLLBACK,
        MODELS_TAG,
        MODELS_UNTAG,
        MODELS_RM,
        MODELS_DISCARD,
        MODELS_GC,
        CANARY_BEGIN,
        CANARY_SHOW,
        BUNDLES_LS,
        BUNDLES_PREPARE,
        BUNDLES_KEEP,
        BUNDLES_FIND,
        BUNDLES_RM,
    )
}
