"""Enrolment on the site's own machine: the operator's identity is there, so no token is typed."""

from __future__ import annotations

from pathlib import Path

from fl_client.identity.enrolment import enroll
from fl_server.operations.catalogue import DEVICES_INVITE
from rengo.operator.client import OperatorClient
from rengo.site.folder import SiteFolder
from runtime.broker_url import parse_url
from runtime.errors import ConfigError
from runtime.security.join_token import JoinToken

_LIFETIME_S = 300.0


def join(folder: SiteFolder, name: str, server: str | None) -> Path:
    """Return the identity file of a new device of the site in this folder.

    Args:
        folder: the site's.
        name: the device's id.
        server: the broker's URL; None for what the site itself says.

    Raises:
        ConfigError: there is no site here; says how another machine becomes its device.
    """
    operators = [each for each in folder.all_identities() if each.role == "operator"]
    if not operators:
        raise ConfigError(
            f"this machine is not yet a device {name!r}; on the site: `rengo devices invite`, and "
            f"here: rengo enroll {server or 'URL'} --name {name} --token TOKEN"
        )
    wanted = {"group": "", "project": "default", "uses": 1, "lifetime_s": _LIFETIME_S}
    with OperatorClient(operators[0]) as client:
        made = client.request(DEVICES_INVITE, wanted)
    token = JoinToken.parse(made.token)
    return enroll(parse_url(server or made.url), token, folder.identities, name).path
