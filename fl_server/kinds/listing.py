"""The kinds of flows that every server has. A caller of ``Server`` may add its own."""

from __future__ import annotations

from fl_server.kinds.base import FlowKind
from fl_server.kinds.canary import CanaryKind
from fl_server.kinds.sync import SyncKind

FLOW_KINDS: dict[str, FlowKind] = {"sync": SyncKind(), "canary": CanaryKind()}
