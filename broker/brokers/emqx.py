"""The users of an EMQX broker, by the HTTP API of its version 5."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote, urlencode

import urllib3

from broker.brokers.access_control import RefusedConnection
from broker.wire.access import BrokerUser, require_users
from broker.wire.topics import PREFIX
from runtime.errors import AuthenticationFailed, ConfigError, TransportError
from runtime.security.tls import Tls

_PAGE: Final = 1000
_TIMEOUT: Final = urllib3.Timeout(connect=3.0, read=10.0)
_RULES: Final = "authorization/sources/built_in_database/rules/users"
# what no rule allows is denied, whatever the broker's own ``no_match`` says
_DENIED: Final = ("$SYS/#", "#")

_Rules = frozenset[tuple[str, str, str]]


class EmqxAccess:
    """Manages the users of a site in EMQX's built-in databases of users and of rules.

    Written after EMQX's documentation and source, and tested against a server that answers as
    these say. **It was not run against a real EMQX.**

    The broker may serve others too. So it removes or changes only users whose rules it has made, in
    the site's own domain; any other user of the same name is an error.

    EMQX does not show passwords. The first :meth:`apply` of an object therefore sets the password
    of every user, and only later ones know whose password has changed, to disconnect them.

    EMQX must have password authentication and authorization with the built-in database, before
    other sources, and an API key that may change them. To disconnect a user at once, the cache of
    its rules is cleared and its clients are kicked out.

    Args:
        url: of the API without its path, as ``https://broker.example:18084``.
        api_key: the API key.
        secret: its secret, never shown.
        authenticator: which authenticator holds the users.
        tls: which authority to trust for an https URL; the system's by default.

    Raises:
        ConfigError: the URL is not usable.
    """

    manages_users = True

    def __init__(
        self,
        url: str,
        api_key: str,
        secret: str,
        authenticator: str = "password_based:built_in_database",
        *,
        tls: Tls | None = None,
    ) -> None:
        try:
            parsed = urllib3.util.parse_url(url)
        except urllib3.exceptions.LocationParseError as error:
            raise ConfigError(f"the EMQX API's URL {url!r} is not usable: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(f"the EMQX API's URL {url!r} is not usable: give http(s)://host:port")
        self._url = url.rstrip("/") + "/api/v5/"
        self._address = f"{parsed.host}:{parsed.port or parsed.scheme}"
        self._users = f"authentication/{quote(authenticator, safe='')}/users"
        context = (tls or Tls()).context() if parsed.scheme == "https" else None
        self._pool = urllib3.PoolManager(
            headers=urllib3.make_headers(basic_auth=f"{api_key}:{secret}"), ssl_context=context
        )
        self._passwords: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"EmqxAccess({self._url!r})"

    def refused_connections(self) -> list[RefusedConnection]:
        """Return nothing: EMQX keeps its own audit log."""
        return []

    def lasting_sessions(self) -> list[str]:
        """Return nothing: EMQX ends a session that nobody comes back for by its own expiry."""
        return []

    def close(self) -> None:
        """Close the connections to the API."""
        self._pool.clear()

    def apply(self, users: Sequence[BrokerUser]) -> None:
        """Replace the site's users; returns when EMQX has applied them.

        Raises:
            ConfigError: bad users, or one whose name somebody else uses on this EMQX; nothing
                changed.
            AuthenticationFailed: EMQX refused the API key.
            TransportError: EMQX cannot be reached or refused a step; the next apply continues.
        """
        require_users(users)
        wanted = {user.name: user for user in users}
        rules_of = {each["username"]: _as_set(each["rules"]) for each in self._list(_RULES)}
        existing = {each["user_id"] for each in self._list(self._users)}
        domains = _domains(users)
        ours = {name for name, rules in rules_of.items() if _is_ours(rules, domains)}
        foreign = sorted(set(wanted) & (existing | set(rules_of)) - ours)
        if foreign:
            raise ConfigError(
                f"on the EMQX at {self._address} somebody else uses the names {', '.join(foreign)}"
            )
        for name in sorted(ours - set(wanted)):
            self._remove(name)
        changed = {name for name, user in wanted.items() if rules_of.get(name) != _wanted(user)}
        for name, user in wanted.items():
            if name in changed:  # rules first: a user never exists without them
                body = {"username": name, "rules": _rules(user)}
                self._put_or_post(name in rules_of, _RULES, name, body, wrap=True)
            self._set_password(user, exists=name in existing)
        if changed & existing:
            self._call("DELETE", "authorization/cache", missing_ok=True)

    def _set_password(self, user: BrokerUser, *, exists: bool) -> None:
        digest = sha256(user.password.encode()).digest()
        before = self._passwords.get(user.name)
        if exists and before == digest:
            return
        secret = {"password": user.password, "is_superuser": False}
        body = secret if exists else {"user_id": user.name, **secret}
        self._put_or_post(exists, self._users, user.name, body, wrap=False)
        if exists and before is not None:
            self._kick(user.name)
        self._passwords[user.name] = digest

    def _remove(self, name: str) -> None:
        # the rules last: by them the next apply recognises the user as ours
        self._call("DELETE", f"{self._users}/{quote(name, safe='')}", missing_ok=True)
        self._kick(name)
        self._call("DELETE", f"{_RULES}/{quote(name, safe='')}", missing_ok=True)
        self._passwords.pop(name, None)

    def _kick(self, name: str) -> None:
        for client in list(self._list("clients", username=name)):
            if client.get("username") == name:
                path = f"clients/{quote(client['clientid'], safe='')}"
                self._call("DELETE", path, missing_ok=True)

    def _put_or_post(
        self, exists: bool, path: str, name: str, body: Mapping[str, Any], *, wrap: bool
    ) -> None:
        if exists:
            self._call("PUT", f"{path}/{quote(name, safe='')}", body)
        else:
            self._call("POST", path, [body] if wrap else body)

    def _list(self, path: str, **query: str) -> Iterator[dict[str, Any]]:
        page = 1
        while True:
            query_text = urlencode({"page": page, "limit": _PAGE, **query})
            answer = self._call("GET", f"{path}?{query_text}")
            try:
                yield from answer["data"]
                more = bool(answer["meta"].get("hasnext", len(answer["data"]) >= _PAGE))
            except (TypeError, KeyError, AttributeError) as error:
                raise TransportError(
                    f"EMQX at {self._address} answered GET {path} oddly"
                ) from error
            if not more:
                return
            page += 1

    def _call(self, method: str, path: str, body: Any = None, *, missing_ok: bool = False) -> Any:
        try:
            answer = self._pool.request(
                method, self._url + path, json=body, timeout=_TIMEOUT, retries=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise TransportError(f"EMQX at {self._address} cannot be reached: {error}") from error
        if answer.status == 404 and missing_ok:
            return None
        what = f"EMQX at {self._address} answered {method} {path.partition('?')[0]}"
        if answer.status in (401, 403):
            raise AuthenticationFailed(f"{what} with status {answer.status}: see to the API key")
        if answer.status >= 300:
            raise TransportError(f"{what} with status {answer.status}: {_excerpt(answer.data)}")
        if not answer.data:
            return None
        try:
            return json.loads(answer.data)
        except ValueError as error:
            raise TransportError(f"{what} with something that is not JSON") from error


def _excerpt(data: bytes) -> str:
    return data[:200].decode("utf-8", "replace")


def _rules(user: BrokerUser) -> list[dict[str, str]]:
    allowed = [("publish", each) for each in user.grants.publish]
    allowed += [("subscribe", each) for each in user.grants.subscribe]
    return [
        {"action": action, "topic": topic, "permission": "allow"} for action, topic in allowed
    ] + [{"action": "all", "topic": topic, "permission": "deny"} for topic in _DENIED]


def _wanted(user: BrokerUser) -> _Rules:
    return _as_set(_rules(user))


def _as_set(rules: Sequence[Mapping[str, Any]]) -> _Rules:
    return frozenset(
        (str(each.get("action")), str(each.get("topic")), str(each.get("permission")))
        for each in rules
    )


def _domains(users: Sequence[BrokerUser]) -> frozenset[str]:
    """Return the prefixes, up to the domain, of all topics that the users may use."""
    levels = len(PREFIX.split("/")) + 1
    filters = [each for user in users for each in user.grants.publish + user.grants.subscribe]
    return frozenset("/".join(each.split("/")[:levels]) + "/" for each in filters)


def _is_ours(rules: _Rules, domains: frozenset[str]) -> bool:
    """Whether a site made these rules: all have our denials, and allow nothing elsewhere."""
    topics = {topic for _, topic, permission in rules if permission == "allow"}
    denied = {("all", topic, "deny") for topic in _DENIED}
    return denied <= rules and all(topic.startswith(tuple(domains)) for topic in topics)
