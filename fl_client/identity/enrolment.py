"""Enrolment, the device's side: a join token becomes an identity file, once.

The device generates its own key. The claim goes to a topic that only holders of the token may use,
and is signed by the token's key. The answer is sealed for the device's key and signed by the
server's, which the token names. The key is on disk before the claim is sent, so that a device that
loses power asks again as the same one.
"""

from __future__ import annotations

import json
import queue
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
from pydantic import SecretStr, ValidationError

from broker.session.endpoint import Endpoint
from broker.session.inbox import SessionEvent, SessionFault
from broker.session.publication import Delivery
from broker.session.session import MqttSession
from broker.session.signer import MessageSigner
from broker.wire.messages import Claim, ClaimAnswer, Envelope, decode
from broker.wire.topics import Topics, parse, require_level
from runtime.broker_url import BrokerPlace
from runtime.errors import (
    AuthenticationFailed,
    ConfigError,
    PeerError,
    TransportError,
    UntrustedPeer,
)
from runtime.files import atomic_write
from runtime.security.identity import Identity, TlsTrust, read_identity, write_identity
from runtime.security.join_token import JoinToken
from runtime.security.signing import SecretKey
from runtime.security.tls import fetch_authority

_CONNECT_S = 20.0
_ANSWER_S = 60.0
_RESEND_S = 3.0
_WELL_KNOWN = frozenset({"domain", "id", "client_id", "password", "store_ca", "index", "count"})


@dataclass(frozen=True)
class Enrolled:
    """An enrolled device: its identity file, and how far its clock is ahead of the server's."""

    path: Path
    clock_off_s: float


def enroll(place: BrokerPlace, token: JoinToken, folder: Path, name: str = "") -> Enrolled:
    """Enrol this device; its identity file is written with mode 0600.

    Args:
        place: the broker's address.
        token: the join token.
        folder: that of the identity file.
        name: the requested id; with "" the server chooses.

    Raises:
        UntrustedPeer: the broker or the server is not the one that the token names.
        AuthenticationFailed: the broker does not know the token.
        ConfigError: the name is not allowed or is used by another identity here, or the server
            refused; says why.
        TransportError: no answer.
    """
    if name:
        require_level(name, "--name")
    tls = _trust(place, token)
    key = _claimed_key(folder, token)
    if name:
        _require_free(folder / f"{name}.json", key)
    envelope, answer = _request(place, token, tls, Claim(public_key=key.public.text, name=name))
    if not answer.admitted:
        # signed by the server: this key will not be claimed again
        _claim_file(folder, token).unlink(missing_ok=True)
        raise ConfigError(f"the server does not take this device in: {answer.reason}")
    identity = _identity(place, token, tls, key, answer.sealed)
    path = folder / f"{identity.id}.json"
    _require_free(path, key)
    write_identity(path, identity)
    _claim_file(folder, token).unlink(missing_ok=True)
    return Enrolled(path, time.time() - envelope.sent_ms / 1000)


def _require_free(path: Path, key: SecretKey) -> None:
    """Raise ConfigError if the file exists and has another key."""
    if path.exists() and read_identity(path).key.get_secret_value() != key.text:
        raise ConfigError(
            f"{path} is another identity of this machine; remove it if it is no longer used, or "
            "choose another name by --name"
        )


def _trust(place: BrokerPlace, token: JoinToken) -> TlsTrust | None:
    """Return how the broker's certificate is checked; its authority is fetched by fingerprint."""
    if not place.tls:
        if token.ca_fingerprint:
            raise ConfigError(
                f"this token is for a broker with TLS; use mqtts://{place.host}:{place.port}"
            )
        return None
    if not token.ca_fingerprint:
        return TlsTrust()
    return TlsTrust(ca=fetch_authority(place.host, place.port, token.ca_fingerprint, _CONNECT_S))


def _request(
    place: BrokerPlace, token: JoinToken, tls: TlsTrust | None, claim: Claim
) -> tuple[Envelope, ClaimAnswer]:
    topics, signer = Topics(token.domain), MessageSigner(token.id, token.key)
    answers: queue.SimpleQueue[SessionEvent] = queue.SimpleQueue()

    def enqueue(event: SessionEvent) -> bool:
        answers.put(event)
        return True

    endpoint = Endpoint(
        place.host,
        place.port,
        token.id,
        token.broker_password,
        f"{token.id}-{secrets.token_hex(8)}",
        tls=None if tls is None else tls.tls,
        persistent=False,
    )
    session = MqttSession(endpoint, [topics.enroll(token.id, "result")], enqueue)
    session.start()
    try:
        session.wait_connected(_CONNECT_S)
        deadline = time.monotonic() + _ANSWER_S
        while time.monotonic() < deadline:
            session.publish(signer.sign(topics.enroll(token.id), claim))
            answer = _await(answers, session, token, claim, _RESEND_S)
            if answer is not None:
                return answer
    except UntrustedPeer:
        raise
    except AuthenticationFailed as error:
        raise AuthenticationFailed(
            f"the broker at {place.host}:{place.port} does not know this token: it is another "
            "site's, or was forgotten a week after its end; ask for a new one"
        ) from error
    finally:
        session.stop()
    raise TransportError(
        f"the server did not answer within {_ANSWER_S:.0f} s, although its broker did; "
        "is it running?"
    )


def _await(
    answers: queue.SimpleQueue[SessionEvent],
    session: MqttSession,
    token: JoinToken,
    claim: Claim,
    timeout_s: float,
) -> tuple[Envelope, ClaimAnswer] | None:
    """Return the answer to this claim; answers to other holders of the token are ignored."""
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        try:
            event = answers.get(timeout=left)
        except queue.Empty:
            return None
        if isinstance(event, SessionFault):
            raise event.error
        if not isinstance(event, Delivery) or not event.payload:
            continue
        session.ack(event)
        try:
            envelope, message = decode(event.payload, parse(event.topic), token.server_key)
        except PeerError as error:
            raise UntrustedPeer(
                "the answer is not from the server that this token names; the broker may be "
                f"another site's, or not to be trusted ({error})"
            ) from error
        if isinstance(message, ClaimAnswer) and message.public_key == claim.public_key:
            return envelope, message
    return None


def _identity(
    place: BrokerPlace, token: JoinToken, tls: TlsTrust | None, key: SecretKey, sealed: bytes
) -> Identity:
    given: Any = msgpack.unpackb(key.unseal(sealed), max_ext_len=0)
    if not isinstance(given, dict) or given.keys() != _WELL_KNOWN:
        raise ConfigError("the server's answer is of another version of Rengo")
    try:
        return Identity(
            role="device",
            domain=given["domain"],
            id=given["id"],
            client_id=given["client_id"],
            host=place.host,
            port=place.port,
            password=SecretStr(given["password"]),
            key=SecretStr(key.text),
            server_key=token.server_key.text,
            tls=tls,
            store_ca=given["store_ca"] or None,
            index=given["index"],
            count=given["count"],
        )
    except (ValidationError, TypeError) as error:
        raise ConfigError("the server's answer is of another version of Rengo") from error


def _claim_file(folder: Path, token: JoinToken) -> Path:
    return folder / f"{token.id}.claim"


def _claimed_key(folder: Path, token: JoinToken) -> SecretKey:
    """Return the key of an earlier claim with this token, else a new one, written to disk."""
    path = _claim_file(folder, token)
    try:
        return SecretKey(json.loads(path.read_text("ascii"))["key"])
    except FileNotFoundError:
        key = SecretKey.generate()
        atomic_write(path, json.dumps({"key": key.text}).encode())
        return key
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise ConfigError(f"{path} is damaged; remove it and ask for a new token") from error
