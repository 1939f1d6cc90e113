"""An operator's connection: one operation at a time over MQTT, and what the domain publishes."""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from pydantic import ValidationError

from broker.session.endpoint import Endpoint
from broker.session.inbox import Connected, SessionEvent, SessionFault
from broker.session.publication import Delivery
from broker.session.session import MqttSession
from broker.session.signer import MessageSigner
from broker.wire.messages import Message, OperatorReply, OperatorRequest, decode
from broker.wire.topics import Address, Topics, parse
from fl_server.operations.catalogue import DEVICES_LS, Operation, R
from fl_server.operations.paging import AFTER, NEXT
from fl_server.operations.results.members import DeviceRow
from runtime.config import validate
from runtime.errors import ConfigError, PeerError, RunNotCompleted, TransportError
from runtime.security.identity import Identity
from runtime.security.signing import PublicKey
from storage.transfer.files import Transfers, TransferSettings

_INBOX_MAX = 10_000
_ASK_AGAIN_S = 2.0


@dataclass(frozen=True)
class News:
    """A message that came: a device's presence, a run's document or event."""

    address: Address
    message: Message


class OperatorClient:
    """A short-lived connection as the operator; use as a context manager. One thread uses it.

    Raises:
        ConfigError: the identity is not an operator's.
        TransportError: the broker cannot be reached within ``timeout_s``.
    """

    def __init__(self, identity: Identity, timeout_s: float = 10.0) -> None:
        if identity.role != "operator":
            raise ConfigError(f"identity {identity.id} is a {identity.role}'s, not an operator's")
        self._identity = identity
        self._timeout_s = timeout_s
        self._topics = Topics(identity.domain)
        self._inbox: queue.SimpleQueue[SessionEvent] = queue.SimpleQueue()
        self._news: list[News] = []
        self._author = MessageSigner(identity.id, identity.secret_key)
        # one operator may run several command lines at the same time
        client_id = f"{identity.client_id[:80]}-{secrets.token_hex(4)}"
        endpoint = replace(Endpoint.of(identity), client_id=client_id, persistent=False)
        self._session = MqttSession(
            endpoint,
            [
                self._topics.operator(identity.id, "reply"),
                self._topics.server_state,
                self._topics.device("+", "state"),
                self._topics.device("+", "info"),
                self._topics.run("+", "state"),
                self._topics.run("+", "events"),
            ],
            self._offer,
        )

    def __enter__(self) -> Self:
        self._session.start()
        try:
            self._session.wait_connected(self._timeout_s)
        except BaseException:
            self._session.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._session.stop()

    @property
    def server_key(self) -> PublicKey:
        """The key of the site's server, which signs models."""
        return self._identity.believed

    def transfers(self, settings: TransferSettings | None = None) -> Transfers:
        """Return a client of the site's object store."""
        return Transfers(settings, tls=self._identity.store_trust)

    def request(
        self,
        operation: Operation[Any, R],
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 30.0,
    ) -> R:
        """Have the server do one operation; both ways are checked by the operation's models.

        Raises:
            ConfigError: the arguments are wrong, by these models or by what the server says.
            RunNotCompleted: the server could not do it.
            TransportError: no answer in time, or one that is no result of this operation.
        """
        given = validate(operation.arguments, arguments or {}, operation.name)
        document = self.call(
            operation.name, given.model_dump(mode="json", exclude_unset=True), timeout_s=timeout_s
        )
        try:
            return operation.result.read(document)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise TransportError(
                f"the server's answer to {operation.name!r} is not understood ({where}: "
                f"{first['msg']}); is it of another version of Rengo?"
            ) from error

    def call(
        self, operation: str, arguments: dict[str, Any] | None = None, *, timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """Have the server do one operation; return its result as it came, all pages of a list.

        The request is sent again, with the same id, until it is answered: the server does it once.

        Raises:
            ConfigError: the server says that the request is wrong.
            RunNotCompleted: the server could not do it.
            TransportError: no answer in time, of one page where there are several.
        """
        request_id = secrets.token_hex(8)
        result: dict[str, Any] = {}
        after: str | None = ""
        while after is not None:
            given = {**(arguments or {}), **({AFTER: after} if after else {})}
            request = OperatorRequest(request_id=request_id, operation=operation, arguments=given)
            page = self._ask(request, timeout_s)
            after = page.pop(NEXT, None)
            for key, value in page.items():
                result[key] = result[key] + value if key in result else value
        return result

    def _ask(self, request: OperatorRequest, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        topic = self._topics.operator(self._identity.id, "request")
        while (left := deadline - time.monotonic()) > 0:
            self._session.publish(self._author.sign(topic, request))
            reply = self._await_reply(request.request_id, min(_ASK_AGAIN_S, left))
            if reply is not None:
                return _result(reply)
        raise TransportError(
            f"the server did not answer {request.operation!r} within {timeout_s:.0f} s; "
            "is it running?"
        )

    def devices(self, *, timeout_s: float = 30.0) -> list[DeviceRow]:
        """Return every device that was ever admitted, by id.

        Raises:
            TransportError: a page did not come within ``timeout_s``.
        """
        return self.request(DEVICES_LS, timeout_s=timeout_s).devices

    def news(self, timeout_s: float) -> Iterator[News]:
        """Yield the messages that have come, then those that come within ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self._news:
                yield self._news.pop(0)
            left = deadline - time.monotonic()
            if left <= 0 or not self._receive(left):
                return

    def _await_reply(self, request_id: str, timeout_s: float) -> OperatorReply | None:
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            seen = len(self._news)
            if not self._receive(left):
                return None
            for news in self._news[seen:]:
                message = news.message
                if isinstance(message, OperatorReply):
                    self._news.remove(news)
                    if message.request_id == request_id:
                        return message
        return None

    def _receive(self, timeout_s: float) -> bool:
        """Handle one event of the session; False when none came."""
        try:
            event = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return False
        match event:
            case Delivery():
                self._session.ack(event)
                if event.payload:
                    self._decode(event)
            case SessionFault():
                raise TransportError(str(event.error))
            case Connected():
                pass
        return True

    def _decode(self, delivery: Delivery) -> None:
        address = parse(delivery.topic)
        # only the server knows the devices' keys; here their messages are only shown
        key = None if address.area == "dev" else self._identity.believed
        try:
            _, message = decode(delivery.payload, address, key)
        except PeerError as error:
            if address.area == "dev":
                return  # one device's bad message must not end the command
            raise TransportError(
                f"a message on {delivery.topic} is not from this site's server: {error}"
            ) from error
        self._news.append(News(address, message))

    def _offer(self, event: SessionEvent) -> bool:
        if self._inbox.qsize() >= _INBOX_MAX:
            return False
        self._inbox.put(event)
        return True


def _result(reply: OperatorReply) -> dict[str, Any]:
    if not reply.error:
        return dict(reply.result)
    raise (ConfigError if reply.exit_code == 2 else RunNotCompleted)(reply.error)
