"""Where a site listens, and how its own processes reach that."""

from __future__ import annotations

from pathlib import Path

import pytest

from rengo.site.addresses import Listening, OwnCertificate, listening
from rengo.site.certificates import Authority
from runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("host", "reach"),
    [("0.0.0.0", "127.0.0.1"), ("192.0.2.10", "192.0.2.10"), ("127.0.0.2", "127.0.0.2")],
)
def test_a_listener_is_reached_where_it_listens(host: str, reach: str, tmp_path: Path) -> None:
    assert listening(tmp_path, host).reach == reach


def test_one_address_is_advertised_unless_another_name_is_given(tmp_path: Path) -> None:
    assert listening(tmp_path, "192.0.2.10").advertised == "192.0.2.10"
    assert listening(tmp_path, "192.0.2.10", "site.example").advertised == "site.example"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_plain_text(host: str, tmp_path: Path) -> None:
    assert listening(tmp_path, host) == Listening()
    assert not list(tmp_path.iterdir())


def test_parts_that_run_apart_need_certificates_of_the_site(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need --host"):
        listening(tmp_path, "127.0.0.1", apart=["broker"])
    own = OwnCertificate(*Authority(tmp_path / "company").issue_server(["site.example"]))
    with pytest.raises(ConfigError, match="certificates that the site makes"):
        listening(tmp_path, "0.0.0.0", "site.example", own, ["broker"])


def test_what_is_no_address_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'everywhere' is not an address of this machine"):
        listening(tmp_path, "everywhere")
