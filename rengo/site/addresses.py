"""Where a site listens: on loopback in plain text, anywhere else with TLS."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from rengo.site.certificates import Authority, check_certificate, read_authority
from runtime.errors import ConfigError
from runtime.files import atomic_write, make_folder
from runtime.security.identity import TlsTrust

LOOPBACK = "127.0.0.1"
_SOMEWHERE = ("192.0.2.1", 9)  # an address reserved for documentation: nothing is sent to it


@dataclass(frozen=True)
class OwnCertificate:
    """A certificate that the operator provides: the leaf with its chain, and its key.

    ``ca`` is the authority behind it, where the system's authorities do not know it.
    """

    certificate: Path
    key: Path
    ca: Path | None = None


@dataclass(frozen=True)
class Listening:
    """How a site's broker and store are reached.

    Attributes:
        host: the address that they listen on.
        reach: the name by which this machine's processes reach them, unless they run elsewhere.
        advertised: the name by which devices elsewhere do.
        files: the certificate's and the key's file; None without TLS.
        trust: how a client checks the certificate; None without TLS.
        ca: the authority's file, where the system does not know it.
        fingerprint: sha256 of that authority in hex, else "".
    """

    host: str = LOOPBACK
    reach: str = LOOPBACK
    advertised: str = LOOPBACK
    files: tuple[Path, Path] | None = None
    trust: TlsTrust | None = None
    ca: Path | None = None
    fingerprint: str = ""


def listening(
    folder: Path,
    host: str,
    advertise: str | None = None,
    own: OwnCertificate | None = None,
    apart: Collection[str] = (),
) -> Listening:
    """Return how a site listens; beyond loopback its certificates are made where there are none.

    Args:
        folder: where the site's own authority lies or comes to lie.
        host: an IPv4 address of this machine, 0.0.0.0 for all of them.
        advertise: the name or address by which devices reach this machine; found when None.
        own: certificates of the operator's; the name they are for must be ``advertise``.
        apart: names by which the site's processes reach a broker or a store on other machines.

    Raises:
        ConfigError: ``own`` without a name to advertise, or it is not usable; or ``apart`` where
            the site makes no certificates.
    """
    if own is not None:
        if advertise is None:
            raise ConfigError("--tls-cert needs --advertise: the name that the certificate is for")
        if apart:
            raise ConfigError(
                "--broker-at and --store-at are for certificates that the site makes: by "
                "--tls-cert its processes reach broker and store by the name of --advertise"
            )
        return _with_own(own, folder, host, advertise)
    address = _address(host)
    if address.is_loopback:
        if apart:
            raise ConfigError("--broker-at and --store-at need --host: loopback ends here")
        return Listening(str(address), str(address), str(address))
    name = advertise or _address_of_this_machine(address)
    reach = LOOPBACK if address.is_unspecified else str(address)
    authority = Authority(folder)
    names = dict.fromkeys([name, reach, LOOPBACK, "localhost", socket.gethostname(), *apart])
    return Listening(
        str(address),
        reach,
        name,
        authority.issue_server(list(names)),
        TlsTrust(ca=authority.certificate_pem),
        authority.certificate_path,
        authority.fingerprint,
    )


def _with_own(own: OwnCertificate, folder: Path, host: str, name: str) -> Listening:
    check_certificate(own.certificate, own.key)
    key = own.key.absolute()
    if own.ca is None:
        return Listening(host, name, name, (own.certificate.absolute(), key), TlsTrust())
    chain = own.certificate.read_text("ascii")
    ca, fingerprint = read_authority(own.ca)
    if ca not in chain:
        # a device that enrols takes the authority from what the listener shows
        chain = f"{chain.rstrip()}\n{ca}"
    shown = make_folder(folder) / "chain.pem"
    atomic_write(shown, chain.encode())
    return Listening(
        host, name, name, (shown, key), TlsTrust(ca=ca), own.ca.absolute(), fingerprint
    )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(LOOPBACK if host == "localhost" else host)
    except ValueError as error:
        raise ConfigError(
            f"--host {host!r} is not an address of this machine; give 0.0.0.0 for all of them"
        ) from error


def _address_of_this_machine(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return the address by which this machine reaches others, its name when it has none."""
    if not host.is_unspecified:
        return str(host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_SOMEWHERE)
        except OSError:
            return socket.gethostname()
        address: str = probe.getsockname()[0]
        return address
