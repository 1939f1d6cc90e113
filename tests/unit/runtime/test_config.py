"""Configuration: file, environment, flags, in that order; errors name the source and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from fl_client.settings import AgentSettings
from fl_server.settings import ServerConfig
from runtime.config import from_environment, load, merge, parse_assignment, read_toml, validate
from runtime.errors import ConfigError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    host: str = "localhost"
    secret: SecretStr = SecretStr("unset")


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int = 1
    ratio: float = 0.5
    on: bool = False
    place: Path | None = None
    names: list[str] = []
    labels: dict[str, str] = {}
    inner: Inner = Inner()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "role.toml"
    path.write_text('count = 2\nratio = 0.25\n[inner]\nhost = "file"\n')
    return path


def test_flags_over_environment_over_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(Outer, file, "X").inner.host == "file"
    monkeypatch.setenv("X_INNER__HOST", "environment")
    monkeypatch.setenv("X_COUNT", "3")
    settings = load(Outer, file, "X")
    assert (settings.inner.host, settings.count, settings.ratio) == ("environment", 3, 0.25)
    settings = load(Outer, file, "X", {"count": 4, "inner": {"host": "flag"}})
    assert (settings.inner.host, settings.count) == ("flag", 4)


def test_every_kind_of_key_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "X_ON": "true",
        "X_PLACE": "/some/where",
        "X_NAMES": "digits, my task.py:MyTask",
        "X_LABELS": "room=kitchen,floor=2",
        "X_INNER__SECRET": "s3cret",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load(Outer, None, "X")
    assert settings.on is True
    assert settings.place == Path("/some/where")
    assert settings.names == ["digits", "my task.py:MyTask"]
    assert settings.labels == {"room": "kitchen", "floor": "2"}
    assert settings.inner.secret.get_secret_value() == "s3cret"


def test_lists_and_tables_by_environment_as_toml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_NAMES", '["a,b", "c"]')
    monkeypatch.setenv("X_LABELS", '{room = "a=b"}')
    settings = load(Outer, None, "X")
    assert (settings.names, settings.labels) == (["a,b", "c"], {"room": "a=b"})


def test_a_label_without_a_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_LABELS", "kitchen")
    with pytest.raises(ConfigError, match="X_LABELS"):
        load(Outer, None, "X")


@pytest.mark.parametrize(("model", "prefix"), [(AgentSettings, "A"), (ServerConfig, "S")])
def test_the_roles_take_every_key_by_environment(
    model: type[BaseModel], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            for key in nested.model_fields:
                monkeypatch.setenv(f"{prefix}_{name.upper()}__{key.upper()}", "1")
        else:
            monkeypatch.setenv(f"{prefix}_{name.upper()}", "a=1")
    assert from_environment(model, prefix).keys() == model.model_fields.keys()


def test_an_environment_of_another_role_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XX_COUNT", "9")
    monkeypatch.setenv("X_UNKNOWN", "9")
    assert load(Outer, None, "X").count == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("count = ", "is not valid TOML"),
        ("count = 1\ncount = 2", "is not valid TOML"),
        ("[[[", "is not valid TOML"),
        ("x = " + "[" * 10_000, "is not valid TOML"),
        ("count = 'many'", "'count': Input should be a valid integer"),
        ("county = 1", "unknown key 'county' (known: count, inner, labels, names, on, place"),
        ("[inner]\nhots = 1", "unknown key 'inner.hots' (known: host, secret)"),
        ("inner = 3", "'inner': "),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_key(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "role.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Outer, path, "X")
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path / "bytes.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path / "bytes.toml" / "below.toml")


def test_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_INNER__SECRET", "s3cret")
    settings = load(Outer, None, "X")
    assert "s3cret" not in repr(settings)
    with pytest.raises(ConfigError) as caught:
        validate(Outer, {"inner": {"secret": {"a": "s3cret"}}}, "x")
    assert "s3cret" not in str(caught.value)


LONG = "9" * 5000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"x = 1\ny = {LONG}", "a whole number has more digits than any setting takes .at line 2"),
        (f"y = -{LONG[:2]}_{LONG}", "more digits than any setting takes .at line 1"),
        (f"y = [{{a = {LONG}}}]", "more digits"),
        ("y = " + "[" * 10_000, "nested too deeply"),
        ("y = 2026-02-30", "not valid TOML"),
    ],
)
def test_a_number_or_a_nesting_beyond_reading_is_told(text: str, said: str, tmp_path: Path) -> None:
    """Seen before: an internal error."""
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_toml(path)
    assert str(path) in str(caught.value)


def test_such_numbers_in_variables_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_assignment(f"rounds={LONG}") == (["rounds"], LONG)
    for text in (f"[{LONG}]", "[" * 10_000):
        monkeypatch.setenv("X_NAMES", text)
        with pytest.raises(ConfigError, match="X_NAMES is not valid TOML"):
            from_environment(Outer, "X")


def test_merge_lays_table_over_table() -> None:
    values: dict[str, Any] = {"a": {"b": 1, "c": 2}, "d": 3}
    merge(values, {"a": {"b": 9}, "d": {"e": 1}})
    assert values == {"a": {"b": 9, "c": 2}, "d": {"e": 1}}


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("rounds=3", ["rounds"], 3),
        ("cohort.deadline_s=0.5", ["cohort", "deadline_s"], 0.5),
        ("evaluation.on=none", ["evaluation", "on"], "none"),
        ("x='3'", ["x"], "3"),
        ("x=true", ["x"], True),
        ("x=[1, 2]", ["x"], [1, 2]),
        ("x=", ["x"], ""),
        ("x=a=b", ["x"], "a=b"),
        (" x = 1", ["x"], 1),
        ("x=/tmp/a b", ["x"], "/tmp/a b"),
        ("x=" + "[" * 10_000, ["x"], "[" * 10_000),
    ],
)
def test_assignments(text: str, path: list[str], value: object) -> None:
    assert parse_assignment(text) == (path, value)


@pytest.mark.parametrize("text", ["rounds", "=3", "a..b=1", ".a=1", "", "a.=1"])
def test_what_is_no_assignment(text: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        parse_assignment(text)
