"""Each message is verified before anything acts on it, and refusals are counted.

What one sender can make this cost is bounded: time by a rate limit, disk and log by noting only the
first of many refusals.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from broker.session.publication import Delivery
from broker.wire.messages import Envelope, Message, Result, decode
from broker.wire.topics import Address, parse
from fl_server.members.membership import Membership
from fl_server.members.rate_limit import RateLimit
from fl_server.members.rules import AuditEvent
from runtime.errors import PeerError

_LOG = logging.getLogger(__name__)
# a device sends a few messages a round; beyond this rate they are refused. Each KiB counts as one
# message more, since the largest messages that msgpack can hold take 0.4 s to refuse
_MESSAGES_PER_S, _MESSAGES_AT_ONCE = 100.0, 1000
_WEIGHED_BYTES = 1024
_NOTED_PER_S, _NOTED_AT_ONCE = 0.1, 10
_REMEMBERED_RESULTS = 10_000
_OF_STRANGERS = frozenset({"unknown_dev", "revoked_device"})
_OF_UNKNOWN_SENDERS = _OF_STRANGERS | {"signature"}


@dataclass(frozen=True)
class VerifiedMessage:
    """A message that its sender may publish on its topic.

    ``retained``: the broker had it before it was subscribed to.
    """

    address: Address
    envelope: Envelope
    message: Message
    retained: bool = False


class MessageGate:
    """Verifies what the server receives. One thread uses it.

    Args:
        domain: messages of any other are refused.
        members: knows the senders' keys, and has the audit log.
        clear: removes the retained document of a topic.
        tell_stranger: is given whose device's messages are refused, and why: it is not a member.

    Attributes:
        refused: how many messages were refused, by reason; also results that came again
            ("repeated") and connections that the broker refused ("connection").
    """

    def __init__(
        self,
        domain: str,
        members: Membership,
        clear: Callable[[str], None],
        tell_stranger: Callable[[str, str], None],
    ) -> None:
        self.refused: Counter[str] = Counter()
        self._domain = domain
        self._members = members
        self._clear = clear
        self._tell_stranger = tell_stranger
        self._throttle = RateLimit(_MESSAGES_PER_S, _MESSAGES_AT_ONCE)
        self._noted = RateLimit(_NOTED_PER_S, _NOTED_AT_ONCE)
        self._results: dict[tuple[str, str, int], None] = {}

    def verify(self, delivery: Delivery) -> VerifiedMessage | None:
        """Return the message, None for the clearing of a retained document.

        Raises:
            PeerError: it is to be refused.
        """
        address = parse(delivery.topic)
        if address.domain != self._domain:
            raise PeerError("a message of another domain", "foreign_domain")
        if not delivery.payload:
            return None
        if delivery.retain and not address.retained:
            self._clear(address.topic)
            raise PeerError("a retained message where none belongs", "retained")
        weight = 1.0 if address.area == "op" else 1.0 + len(delivery.payload) / _WEIGHED_BYTES
        if not self._throttle.admits(f"{address.area}/{address.id}", time.monotonic(), weight):
            raise PeerError(f"too many messages of {address.id}", "rate_limited")
        key = self._members.key_of(address)
        envelope, message = decode(delivery.payload, address, key)
        if isinstance(message, Result):
            self._note_repetition(address.id, envelope)
        return VerifiedMessage(address, envelope, message, delivery.retain)

    def refuse(self, delivery: Delivery, error: PeerError) -> None:
        """Count a refusal, note it unless there were many alike, and leave nothing of it behind."""
        self.refused[error.reason] += 1
        _LOG.debug("refused a message on %s: %s", delivery.topic, error)
        try:
            address = parse(delivery.topic)
        except PeerError:
            return
        # there may be any number of unknown senders
        who = "somebody" if error.reason.startswith("unknown_") else address.id
        if self._noted.admits(f"{address.area}/{who}/{error.reason}", time.monotonic()):
            _LOG.warning("refused a message on %s: %s", address, error)
            act = AuditEvent(address.id, "message refused", address.topic, {"reason": error.reason})
            self._members.note(act)
        if error.reason in _OF_STRANGERS:
            self._tell_stranger(address.id, error.reason)
        if address.retained and error.reason in _OF_UNKNOWN_SENDERS:
            # a document of an unknown sender must not stay for later subscribers
            self._clear(address.topic)

    def _note_repetition(self, device_id: str, envelope: Envelope) -> None:
        """Count a result that came before: sent again until its receipt, or replayed."""
        sent = (device_id, envelope.boot_id, envelope.seq)
        if sent in self._results:
            self.refused["repeated"] += 1
            return
        self._results[sent] = None
        if len(self._results) > _REMEMBERED_RESULTS:
            del self._results[next(iter(self._results))]
