"""``rengo task pack|keygen|sign|show|verify|push|ls|rm``: tasks that devices take as bundles."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_server.operations.catalogue import BUNDLES_RM
from rengo.cli.codes import DONE
from rengo.cli.common import (
    Commands,
    add_command,
    add_site,
    command_name,
    connect,
    print_json,
)
from rengo.operator.bundle_files import (
    Contents,
    distrust,
    generate_key,
    pack,
    public_key,
    public_path,
    read,
    read_key,
    sign_bundle,
)
from rengo.operator.bundles import bundles, push
from rengo.terminal.format import count, size
from rengo.terminal.lines import say
from rengo.terminal.tables import print_table, when
from runtime.errors import ConfigError
from storage.bundles.bundle import SignedManifest

_NAME = "NAME, or NAME@ and the start of its sha256, as `rengo task ls` shows it"


def add(commands: Commands) -> None:
    """Add the commands."""
    group = commands.add_parser("task", help="pack, sign and push tasks as signed bundles")
    verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_pack(add_command(verbs, "pack", pack_task, "make a bundle of a task's code"))
    parser = add_command(verbs, "keygen", make_key, "make an Ed25519 key to sign bundles with")
    parser.add_argument("path", type=Path, help="the key file to write; the public key goes beside")
    parser = add_command(verbs, "sign", sign_task, "sign a bundle, in its place")
    _add_bundle(parser)
    parser.add_argument("--key", type=Path, required=True, help="a key file of `rengo task keygen`")
    parser.add_argument(
        "--expires",
        type=float,
        metavar="DAYS",
        help="how long devices may run it from now on (default: for ever)",
    )
    parser = add_command(verbs, "show", show_task, "show what a bundle is and holds")
    _add_bundle(parser)
    _add_json(parser)
    parser = add_command(verbs, "verify", verify_task, "check a bundle's signature and every file")
    _add_bundle(parser)
    _add_json(parser)
    add_trust(parser, "whose signature is good enough")
    parser = _at_site(verbs, "push", push_task, "bring a signed bundle to the site")
    _add_bundle(parser)
    _at_site(verbs, "ls", list_tasks, "list the site's bundles, the latest made first")
    parser = _at_site(verbs, "rm", remove_task, "remove a bundle from the site")
    parser.add_argument("name", help=_NAME)


def add_trust(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add ``--trust``."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="KEY",
        help=f"{purpose}: a public key or a file that holds it; may repeat",
    )


def _add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help="FILE.py:CLASS; modules beside it that it imports come along")
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="FILE", help="other files that it opens"
    )
    parser.add_argument(
        "--requires",
        action="append",
        default=[],
        metavar="PACKAGE",
        help='what it needs, as "numpy>=1.26", with --hash=sha256:… if wished; may repeat',
    )
    parser.add_argument(
        "--version", dest="task_version", default="1", help="the task's version, for people"
    )
    parser.add_argument(
        "--memory-mib", type=int, default=0, metavar="N", help="what training needs at least"
    )
    parser.add_argument(
        "--rengo", default="", metavar="VERSION", help="the oldest that will do (default: this one)"
    )
    parser.add_argument(
        *("-o", "--output"), type=Path, required=True, metavar="NAME.rtask", help="where it goes"
    )


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="a file of `rengo task pack`")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def _at_site(
    verbs: Commands, name: str, action: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    parser = add_command(verbs, name, action, summary)
    add_site(parser)
    _add_json(parser)
    return parser


def pack_task(options: argparse.Namespace) -> int:
    """Make a bundle."""
    contents = Contents(
        options.task,
        options.data,
        options.requires,
        options.task_version,
        options.memory_mib << 20,
        options.rengo,
    )
    manifest = pack(contents, options.output)
    files = count(len(manifest.files), "file")
    say(f"{options.output}: task {manifest.name}, {files}, {size(manifest.size_bytes)}")
    for file in manifest.files:
        say(f"  {file.path}")
    say(f"Sign it: {command_name()} task sign {shlex.quote(str(options.output))} --key FILE")
    return DONE


def make_key(options: argparse.Namespace) -> int:
    """Make a key."""
    key = generate_key(options.path)
    say(f"{options.path} signs bundles: keep it secret. Its public key, also in")
    say(f"{public_path(options.path)}, goes into the settings of the devices that trust it:", "")
    say("  [bundles]", f'  trust = ["{key.text}"]')
    return DONE


def sign_task(options: argparse.Namespace) -> int:
    """Sign a bundle."""
    if options.expires is not None and not 0 < options.expires <= 36_500:
        raise ConfigError(f"--expires {options.expires:g} is not between 0 and 36500 days")
    key = read_key(options.key)
    manifest = sign_bundle(options.bundle, key, options.expires or 0.0)
    say(f"{options.bundle} is signed by {key.public.text}, {_expiry(manifest.expires_ms)}")
    return DONE


def show_task(options: argparse.Namespace) -> int:
    """Show a bundle."""
    signed, sha256 = read(options.bundle)
    if options.json:
        print_json(_document(signed, sha256), options.json)
        return DONE
    manifest = signed.manifest
    rows = {
        "task": manifest.name,
        "version": manifest.version,
        "class": f"{manifest.entry}:{manifest.class_name}",
        "sha256": sha256,
        "signed by": "nobody" if signed.signer is None else signed.signer.text,
        "made": when(manifest.created_ms / 1000),
        "expires": _expiry(manifest.expires_ms),
        "needs": ", ".join(each.requirement for each in manifest.dependencies) or "nothing",
        "Rengo": f"{manifest.rengo} or newer",
        "memory": size(manifest.memory_bytes) if manifest.memory_bytes else "not said",
    }
    for key, value in rows.items():
        say(f"{key:10} {value}")
    print_table(
        ["file", "size", "sha256"],
        [[each.path, size(each.size_bytes), each.sha256] for each in manifest.files],
        "",
    )
    return DONE


def verify_task(options: argparse.Namespace) -> int:
    """Check a bundle."""
    signed, sha256 = read(options.bundle)
    trusted = [public_key(each) for each in options.trust]
    if signed.signer is not None and not trusted:
        trusted = [signed.signer]
    reason = distrust(signed, trusted)
    if reason:
        raise ConfigError(f"{options.bundle}: {reason}")
    if options.json:
        print_json(_document(signed, sha256), options.json)
        return DONE
    assert signed.signer is not None
    name = f"{signed.manifest.name}@{sha256[:12]}"
    say(
        f"{name} is whole and signed by {signed.signer.text}, {_expiry(signed.manifest.expires_ms)}"
    )
    if not options.trust:
        print("Whether that key is to be trusted is yours to say: --trust KEY")
    return DONE


def push_task(options: argparse.Namespace) -> int:
    """Bring a bundle to the site."""
    with connect(options) as client:
        kept = push(client, options.bundle)
    if options.json:
        print_json(kept.document(), options.json)
        return DONE
    say(f"{kept.name} is on the site.")
    say(f"Train it: {command_name()} run FILE.py:CLASS --bundle {kept.name}")
    return DONE


def list_tasks(options: argparse.Namespace) -> int:
    """Print the site's bundles."""
    with connect(options) as client:
        found = bundles(client)
    if options.json:
        print_json({"bundles": [each.document() for each in found]}, options.json)
        return DONE
    rows = [
        [
            each.name,
            each.version,
            size(each.size_bytes),
            each.signer[:16],
            _expiry(each.expires_ms),
            ", ".join(each.dependencies),
        ]
        for each in found
    ]
    head = ["bundle", "version", "size", "signer", "expires", "needs"]
    print_table(head, rows, "no bundles yet; `rengo task push` brings one")
    return DONE


def remove_task(options: argparse.Namespace) -> int:
    """Remove a bundle from the site."""
    with connect(options) as client:
        removed = client.request(BUNDLES_RM, {"name": options.name})
    if options.json:
        print_json(removed.document(), options.json)
        return DONE
    say(f"{removed.name} is removed.")
    return DONE


def _document(signed: SignedManifest, sha256: str) -> dict[str, Any]:
    signer = None if signed.signer is None else signed.signer.text
    return {"sha256": sha256, "signer": signer, "manifest": signed.manifest.model_dump(mode="json")}


def _expiry(expires_ms: int) -> str:
    return f"until {when(expires_ms / 1000)}" if expires_ms else "for ever"
