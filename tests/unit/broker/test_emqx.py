"""The EMQX access against a small server that answers as EMQX's documentation says.

It was not run against a real EMQX: what is tested is that we ask for what the documentation offers,
in an order in which a failure does no harm.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

import broker.brokers.emqx
from broker.brokers.emqx import EmqxAccess
from broker.wire.access import BrokerUser, Grants, Role, grants
from runtime.errors import AuthenticationFailed, ConfigError, TransportError

USERS = "authentication/password_based:built_in_database/users"
RULES = "authorization/sources/built_in_database/rules/users"


class Emqx:
    """The state of the scripted broker, and every request that it got."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, Any]] = {}
        self.rules: dict[str, list[dict[str, Any]]] = {}
        self.clients: dict[str, str] = {}
        self.log: list[str] = []
        self.failing: str | None = None

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        self.log.append(f"{method} {path}")
        if self.failing is not None and self.failing in f"{method} {path}":
            return 500, {"code": "INTERNAL_ERROR"}
        folder, _, name = path.rpartition("/")
        match method, path, folder:
            case "GET", _, _ if path == USERS:
                return self._page(
                    [{"user_id": each, "is_superuser": False} for each in self.users], query
                )
            case "GET", _, _ if path == RULES:
                listed = [{"username": k, "rules": v} for k, v in self.rules.items()]
                return self._page(listed, query)
            case "GET", "clients", _:
                wanted = query["username"]
                return self._page(
                    [
                        {"clientid": client, "username": user}
                        for client, user in self.clients.items()
                        if user == wanted
                    ],
                    query,
                )
            case "POST", _, _ if path == USERS and body["user_id"] not in self.users:
                self.users[body["user_id"]] = body
                return 201, {"user_id": body["user_id"], "is_superuser": False}
            case "POST", _, _ if path == RULES and body[0]["username"] not in self.rules:
                self.rules[body[0]["username"]] = body[0]["rules"]
                return 204, None
            case "POST", _, _:
                return 409, {"code": "ALREADY_EXISTS"}
            case "PUT", _, _ if folder == USERS and name in self.users:
                self.users[name].update(body)
                return 200, {"user_id": name, "is_superuser": False}
            case "PUT", _, _ if folder == RULES:
                self.rules[name] = body["rules"]
                return 204, None
            case "DELETE", "authorization/cache", _:
                return 204, None
            case "DELETE", _, _:
                place = {USERS: self.users, RULES: self.rules, "clients": self.clients}[folder]
                return (
                    (404, {"code": "NOT_FOUND"}) if place.pop(name, None) is None else (204, None)
                )
        return 404, {"code": "NOT_FOUND"}

    def _page(self, items: list[Any], query: dict[str, str]) -> tuple[int, Any]:
        page, limit = int(query["page"]), int(query["limit"])
        shown = items[(page - 1) * limit : page * limit]
        meta = {"page": page, "limit": limit, "count": len(items)}
        return 200, {"data": shown, "meta": {**meta, "hasnext": page * limit < len(items)}}


@pytest.fixture
def emqx() -> Iterator[tuple[Emqx, EmqxAccess]]:
    state = Emqx()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            given = base64.b64decode(self.headers["Authorization"].removeprefix("Basic "))
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            if given != b"key:secret":
                status, content = 401, {"code": "BAD_API_KEY_OR_SECRET"}
            else:
                path = unquote(parts.path).removeprefix("/api/v5/")
                status, content = state.answer(self.command, path, query, body)
            data = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = _serve

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        access = EmqxAccess(f"http://127.0.0.1:{server.server_port}", "key", "secret")
        try:
            yield state, access
        finally:
            access.close()
            server.shutdown()
            thread.join()


def device(name: str, password: str = "password-1") -> BrokerUser:
    return BrokerUser(name, password, grants(Role.DEVICE, "home", name))


def test_users_get_exactly_their_rules_and_the_rest_is_denied(
    emqx: tuple[Emqx, EmqxAccess],
) -> None:
    state, access = emqx
    access.apply([device("a"), device("b")])
    assert {name: each["password"] for name, each in state.users.items()} == {
        "a": "password-1",
        "b": "password-1",
    }
    assert not any(each["is_superuser"] for each in state.users.values())
    allowed = grants(Role.DEVICE, "home", "a")
    *given, sys_denied, all_denied = state.rules["a"]
    assert [(each["action"], each["topic"]) for each in given] == [
        *(("publish", topic) for topic in allowed.publish),
        *(("subscribe", topic) for topic in allowed.subscribe),
    ]
    assert {each["permission"] for each in given} == {"allow"}
    assert sys_denied == {"action": "all", "topic": "$SYS/#", "permission": "deny"}
    assert all_denied == {"action": "all", "topic": "#", "permission": "deny"}


def test_rules_are_there_before_their_user(emqx: tuple[Emqx, EmqxAccess]) -> None:
    state, access = emqx
    access.apply([device("a")])
    assert state.log.index(f"POST {RULES}") < state.log.index(f"POST {USERS}")


def test_the_same_users_again_change_nothing(emqx: tuple[Emqx, EmqxAccess]) -> None:
    state, access = emqx
    access.apply([device("a"), device("b")])
    state.log.clear()
    access.apply([device("b"), device("a")])
    assert {line.split()[0] for line in state.log} == {"GET"}


def test_a_removed_user_is_gone_and_its_clients_are_kicked(emqx: tuple[Emqx, EmqxAccess]) -> None:
    state, access = emqx
    access.apply([device("a"), device("b")])
    state.clients.update({"a-1": "a", "a-2": "a", "b-1": "b"})
    access.apply([device("b")])
    assert set(state.users) == set(state.rules) == {"b"}
    assert state.clients == {"b-1": "b"}


def test_a_changed_password_cuts_off_whom_it_concerns(emqx: tuple[Emqx, EmqxAccess]) -> None:
    state, access = emqx
    access.apply([device("a"), device("b")])
    state.clients.update({"a-1": "a", "b-1": "b"})
    access.apply([device("a", "password-2"), device("b")])
    assert state.users["a"]["password"] == "password-2"
    assert state.clients == {"b-1": "b"}


def test_a_new_process_sets_passwords_again_and_kicks_nobody(
    emqx: tuple[Emqx, EmqxAccess],
) -> None:
    state, access = emqx
    access.apply([device("a")])
    state.users["a"]["password"] = "somebody changed it"
    state.clients["a-1"] = "a"
    access._passwords.clear()
    access.apply([device("a")])
    assert state.users["a"]["password"] == "password-1"
    assert state.clients == {"a-1": "a"}


def test_changed_rules_are_replaced_and_the_cache_is_dropped(
    emqx: tuple[Emqx, EmqxAccess],
) -> None:
    state, access = emqx
    access.apply([device("a")])
    access.apply([BrokerUser("a", "password-1", grants(Role.OPERATOR, "home", "a"))])
    assert "rengo/v1/home/op/a/request" in [each["topic"] for each in state.rules["a"]]
    assert "DELETE authorization/cache" in state.log


def test_users_of_others_are_left_alone(emqx: tuple[Emqx, EmqxAccess]) -> None:
    state, access = emqx
    state.users["plant"] = {"user_id": "plant", "password": "theirs"}
    state.rules["plant"] = [{"action": "all", "topic": "plant/#", "permission": "allow"}]
    state.users["bare"] = {"user_id": "bare", "password": "theirs"}
    access.apply([device("a")])
    access.apply([device("b")])
    assert set(state.users) == {"plant", "bare", "b"}
    for name in ("plant", "bare"):
        with pytest.raises(ConfigError, match=f"somebody else uses the names {name}"):
            access.apply([device(name), device("b")])
        assert state.users[name]["password"] == "theirs"


def test_another_site_on_the_same_broker_is_left_alone(emqx: tuple[Emqx, EmqxAccess]) -> None:
    state, access = emqx
    access.apply([BrokerUser("far", "password-1", grants(Role.DEVICE, "away", "far"))])
    access.apply([device("a")])
    assert set(state.users) == {"far", "a"}


@pytest.mark.parametrize("step", [f"DELETE {USERS}/b", "DELETE clients/b-1", f"DELETE {RULES}/b"])
def test_a_removal_that_failed_halfway_is_finished_later(
    emqx: tuple[Emqx, EmqxAccess], step: str
) -> None:
    state, access = emqx
    access.apply([device("a"), device("b")])
    state.clients["b-1"] = "b"
    state.failing = step
    with pytest.raises(TransportError, match="status 500"):
        access.apply([device("a")])
    state.failing = None
    access.apply([device("a")])
    assert set(state.users) == set(state.rules) == {"a"}
    assert not state.clients


@pytest.mark.parametrize("step", [f"POST {RULES}", f"POST {USERS}"])
def test_an_addition_that_failed_halfway_is_finished_later(
    emqx: tuple[Emqx, EmqxAccess], step: str
) -> None:
    state, access = emqx
    state.failing = step
    with pytest.raises(TransportError, match="status 500"):
        access.apply([device("a")])
    state.failing = None
    access.apply([device("a")])
    assert set(state.users) == set(state.rules) == {"a"}


def test_lists_longer_than_a_page_are_read_to_their_end(
    emqx: tuple[Emqx, EmqxAccess], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, access = emqx
    monkeypatch.setattr(broker.brokers.emqx, "_PAGE", 3)
    access.apply([device(f"d{number}") for number in range(10)])
    access.apply([device("d9")])
    assert set(state.users) == {"d9"}


def test_a_refused_key_and_an_absent_broker_are_told_apart(
    emqx: tuple[Emqx, EmqxAccess],
) -> None:
    _, access = emqx
    stranger = EmqxAccess(access._url.removesuffix("/api/v5/"), "key", "wrong-one")
    with pytest.raises(AuthenticationFailed, match="see to the API key"):
        stranger.apply([device("a")])
    stranger.close()
    absent = EmqxAccess("http://127.0.0.1:9", "key", "hush")
    with pytest.raises(TransportError, match=r"127.0.0.1:9 cannot be reached"):
        absent.apply([device("a")])
    assert "hush" not in repr(absent)


@pytest.mark.parametrize("url", ["broker.example", "mqtt://broker", "http://"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="not usable"):
        EmqxAccess(url, "key", "secret")


def test_bad_users_change_nothing(emqx: tuple[Emqx, EmqxAccess]) -> None:
    state, access = emqx
    with pytest.raises(ConfigError, match="at least one user"):
        access.apply([])
    with pytest.raises(ConfigError, match="twice"):
        access.apply([device("a"), BrokerUser("a", "password-1", Grants((), ()))])
    assert not state.log
