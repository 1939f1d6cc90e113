"""All that the processes of a site need, written into its folder before any of them starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import tomli_w

from broker.wire.access import BrokerUser, Role, grants
from rengo.site.addresses import OwnCertificate, listening
from rengo.site.components import BrokerPart, StorePart
from rengo.site.external_broker import BrokerUserFile, Credentials, read_credentials
from rengo.site.folder import BrokerAt, SiteFolder, SiteRecord
from runtime.broker_url import BrokerPlace, parse_url
from runtime.errors import ConfigError
from runtime.files import atomic_write, make_folder
from runtime.security.identity import Identity, TlsTrust, read_identity

_LOG = logging.getLogger(__name__)
_BACK = ": put the site's own file back, from a backup (`rengo site restore` makes a folder of one)"


@dataclass(frozen=True)
class SiteOptions:
    """How a site listens and what it is made of; what is None stays as it was at the last start.

    Attributes:
        domain: named at the first start.
        broker: "nats", "mosquitto", or the address of a broker of somebody else's.
        broker_port: the MQTT port; a free one at first.
        store: which embedded S3 server, at the first start.
        store_port: the S3 port, likewise.
        host: the address to listen on; anything but loopback is TLS.
        advertise: the name or address by which devices reach this machine.
        broker_at: the name by which the site's processes reach a broker that runs on a machine or
            in a container of its own; not kept.
        store_at: likewise, of the store.
        certificate: the operator's own, instead of one by the site's authority.
        credentials: the users of an external broker.
        client_certificates: a folder for mutual TLS: ``ca.pem``, which signs the clients'
            certificates, and ``NAME.pem`` with ``NAME.key`` for each identity of the site.
        parent: the section of a domain's settings; None where the server is no domain's.
    """

    domain: str = "main"
    broker: str | None = None
    broker_port: int | None = None
    store: Literal["juicefs", "seaweedfs"] = "juicefs"
    store_port: int | None = None
    host: str | None = None
    advertise: str | None = None
    broker_at: str | None = None
    store_at: str | None = None
    certificate: OwnCertificate | None = None
    credentials: Path | None = None
    client_certificates: Path | None = None
    parent: Mapping[str, Any] | None = None


class Preparation:
    """A site that could start: identities, certificates, keys, users and settings, all on disk.

    Preparing the same folder again changes only what the options change. The caller holds the
    folder's lock, and has the folder keep the record when the site has started: options with which
    it does not start are forgotten.

    Args:
        folder: the site's.
        options: how it listens and what it is made of.
        devices: how many device identities to make (device-1, …).

    Attributes:
        record: what the site keeps from start to start.
        listening: how broker and store are reached.
        at: where identities of the site find the broker.
        public_url: where devices elsewhere find it.
        operator: the identity of the site's operator.
        broker: its settings; None for a broker of somebody else's.
        store: its settings.
        settings: where each part's settings lie: "broker", "store", "server", in the order in
            which they start.

    Raises:
        ConfigError: the options do not fit each other or this folder; says how to mend it.
    """

    def __init__(self, folder: SiteFolder, options: SiteOptions, devices: int = 0) -> None:
        self.folder = folder
        self._options = options
        external = options.broker is not None and "://" in options.broker
        self.record: SiteRecord = folder.record_with(
            domain=options.domain,
            store=options.store,
            broker="external" if external else options.broker,
            broker_port=options.broker_port,
            store_port=options.store_port,
            host=options.host,
            advertise=options.advertise,
        )
        record = self.record
        apart = [name for name in (options.broker_at, options.store_at) if name is not None]
        self.listening = listening(
            folder.root / "authority", record.host, record.advertise, options.certificate, apart
        )
        reach = self.listening
        self._credentials: Credentials | None = None
        self.at = BrokerAt(
            record.domain, options.broker_at or reach.reach, record.broker_port, reach.trust
        )
        self.public_url = BrokerPlace(
            reach.advertised, record.broker_port, tls=reach.trust is not None
        ).url
        if record.broker == "external":
            self._take_external()
        self._make_identities(devices)
        self.broker = self._broker_part()
        self.store = self._store_part()
        self.settings: dict[str, Path] = {}
        self._write()

    # --- the broker's users and the identities ------------------------------------------------

    def _take_external(self) -> None:
        """Read who may connect to the broker of somebody else's, and where it is."""
        options = self._options
        if options.broker is None or options.credentials is None:
            raise ConfigError(
                "a site on another broker needs --broker URL and --credentials FILE at every start"
            )
        self._credentials = read_credentials(options.credentials)
        place = parse_url(options.broker)
        trust: TlsTrust | None = self._credentials.tls.trust() if place.tls else None
        store = self.listening.trust
        store_ca = None if store is None else store.ca
        self.at = BrokerAt(self.record.domain, place.host, place.port, trust, store_ca)
        self.public_url = place.url

    def _make_identities(self, devices: int) -> None:
        known = self._credentials
        if known is None:
            self._require_one_site("server", "operator")
            self._server = self.identity("server", "server")
            self.operator = self.identity("operator", "operator")
            for number in range(devices):
                self.identity("device", f"device-{number + 1}", number, devices)
            return
        self._require_one_site(known.server.username, known.operator.username)
        self._server = self.identity("server", known.server.username, user=known.server)
        self.operator = self.identity("operator", known.operator.username, user=known.operator)
        for number, user in enumerate(known.devices):
            self.identity("device", user.username, number, len(known.devices), user)

    def _require_one_site(self, server_name: str, operator_name: str) -> None:
        """Raise ConfigError where the operator, as every device, believes another server."""
        server, operator = map(self.folder.identity_path, (server_name, operator_name))
        if not operator.exists():
            return
        if not server.exists():
            raise ConfigError(
                f"{server} is missing, and the site's devices believe no other{_BACK}"
            )
        if read_identity(server).secret_key.public != read_identity(operator).believed:
            raise ConfigError(f"{server} and {operator} are not of one site{_BACK}")

    def identity(
        self,
        role: Literal["device", "operator", "server"],
        name: str,
        index: int = 0,
        count: int = 1,
        user: BrokerUserFile | None = None,
    ) -> Identity:
        """Return an identity of this site, with its certificate where there is one."""
        at, folder = self.at, self._options.client_certificates
        if folder is not None and at.tls is not None and (folder / f"{name}.pem").exists():
            files = {
                "certificate": folder / f"{name}.pem",
                "certificate_key": folder / f"{name}.key",
            }
            at = replace(at, tls=at.tls.model_copy(update=files))
        password = None if user is None else user.password
        return self.folder.ensure_identity(
            role, name, at, index=index, count=count, password=password
        )

    # --- the parts ----------------------------------------------------------------------------

    def _broker_part(self) -> BrokerPart | None:
        if self.record.broker == "external":
            return None
        files, folder = self.listening.files, self._options.client_certificates
        if folder is not None and files is None:
            raise ConfigError("client certificates need TLS: let the site listen by --host")
        part = BrokerPart(
            kind=self.record.broker,
            folder=self.folder.root / "broker",
            host=self.listening.host,
            port=self.record.broker_port,
            **_shown(files),
            client_ca=None if folder is None else folder / "ca.pem",
        )
        access = part.access()
        users = [_user(self._server, Role.SERVER), _user(self.operator, Role.OPERATOR)]
        if not access.admits(users):
            if access.has_users:
                _LOG.warning(
                    "the users of the MQTT broker in %s are damaged, or of another site: they are "
                    "made anew, and the server adds its devices",
                    part.folder,
                )
            # the server adds all other users; those it added stay
            access.apply(users)
        return part

    def _store_part(self) -> StorePart:
        reach = self.listening
        return StorePart(
            kind=self.record.store,
            folder=make_folder(self.folder.root / "store"),
            host=reach.host,
            port=self.record.store_port,
            **_shown(reach.files),
            ca=reach.ca,
            name=self._options.store_at or reach.reach,
        )

    def _write(self) -> None:
        parts: dict[str, Mapping[str, Any]] = {}
        if self.broker is not None:
            parts["broker"] = self.broker.model_dump(mode="json", exclude_none=True)
        parts["store"] = self.store.model_dump(mode="json", exclude_none=True)
        parts["server"] = self._server_settings()
        if self._options.parent is not None:
            parts["server"] = {**parts["server"], "parent": dict(self._options.parent)}
        for name, values in parts.items():
            path = make_folder(self.folder.root / name) / f"{name}.toml"
            atomic_write(path, tomli_w.dumps(values).encode())
            self.settings[name] = path

    def _server_settings(self) -> dict[str, Any]:
        record, reach, store = self.record, self.listening, self.store.store().settings
        broker: dict[str, Any] = {
            "kind": record.broker,
            "folder": str(self.folder.root / "broker"),
            "public_url": self.public_url,
            "ca_fingerprint": reach.fingerprint,
        }
        if self._credentials is not None:
            emqx = self._credentials.emqx
            broker = {"kind": "manual", "public_url": self.public_url}
            if emqx is not None:
                secret = emqx.secret.get_secret_value()
                broker |= {"kind": "emqx", "url": emqx.url, "api_key": emqx.api_key}
                broker |= {"secret": secret}
        public = f"{urlsplit(store.endpoint).scheme}://{reach.advertised}:{record.store_port}"
        return {
            "identity": str(self.folder.identity_path(self._server.id)),
            "operators": [str(self.folder.identity_path(self.operator.id))],
            "data_dir": str(self.folder.root / "server"),
            "broker": broker,
            "store": {
                "endpoint": store.endpoint,
                "public_endpoint": public,
                "bucket": store.bucket,
                "access_key": store.access_key,
                "secret": store.secret.get_secret_value(),
                **({} if store.ca is None else {"ca": str(store.ca)}),
            },
        }


def _shown(files: tuple[Path, Path] | None) -> dict[str, Path]:
    return {} if files is None else {"certificate": files[0], "certificate_key": files[1]}


def _user(identity: Identity, role: Role) -> BrokerUser:
    password = identity.password.get_secret_value()
    return BrokerUser(identity.id, password, grants(role, identity.domain, identity.id))
