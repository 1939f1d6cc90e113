"""``rengo models ls|show|promote|rollback|tag|untag|verify|rm|gc``, and the verbs with files."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_server.operations.catalogue import (
    MODELS_DISCARD,
    MODELS_GC,
    MODELS_LS,
    MODELS_PRODUCTION,
    MODELS_PROMOTE,
    MODELS_RM,
    MODELS_ROLLBACK,
    MODELS_SET_ASIDE,
    MODELS_SHOW,
    MODELS_TAG,
    MODELS_UNTAG,
    Operation,
)
from fl_server.operations.results.models import ModelDetail, ModelRow, SetAside
from rengo.cli.codes import DONE
from rengo.cli.common import Commands, add_command, add_site, connect, print_json
from rengo.cli.operator import canary
from rengo.cli.operator.model_files import add_file_verbs
from rengo.operator.models import download, find_model, manifest_path, verify_file
from rengo.terminal.format import count, figure, size
from rengo.terminal.lines import say
from rengo.terminal.tables import print_table, when
from storage.versions.manifest import Manifest, Parent

_NAME = "RUN:VERSION, RUN (its latest), TASK@production, a tag, or the start of the sha256"


def add(commands: Commands) -> None:
    """Add the commands."""
    group = commands.add_parser(
        "models", help="list, fetch, promote and clean up versions of models"
    )
    verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_list(_verb(verbs, "ls", list_models, "list the versions, the latest first"))
    _add_name(_verb(verbs, "show", show_model, "show one version: lineage, metrics, stage"))
    _add_promotion(_verb(verbs, "promote", promote, "put a version into production"))
    _add_rollback(_verb(verbs, "rollback", rollback, "put the version before back into production"))
    for name, summary in (
        ("tag", "give a version a tag, which keeps it"),
        ("untag", "take a tag away"),
    ):
        parser = _verb(verbs, name, tag, summary)
        _add_name(parser)
        parser.add_argument("label", help="a-z, 0-9 and ._-, up to 64 characters")
    parser = _verb(
        verbs, "verify", verify, "check a version's or a fetched file's signature and bytes"
    )
    parser.add_argument("name", help=f"a file that `rengo models get` brought, or {_NAME}")
    _add_name(_verb(verbs, "rm", remove, "remove a version for good"))
    parser = _verb(verbs, "gc", clean, "remove what no run and no policy needs")
    parser.add_argument("--dry-run", action="store_true", help="say only what would be removed")
    add_file_verbs(verbs)


def _verb(
    verbs: Commands, name: str, action: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    parser = add_command(verbs, name, action, summary)
    add_site(parser)
    parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help=_NAME)


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", default="", metavar="RUN", help="only the versions of a run")
    parser.add_argument("--task", default="", metavar="TASK", help="only the versions of a task")


def _add_promotion(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for `rengo models show`")
    canary.add_options(parser)


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task", nargs="?", default="", help="whose production; needed where several tasks have one"
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for `rengo models show`")


def list_models(options: argparse.Namespace) -> int:
    """Print the versions."""
    with connect(options) as client:
        models = client.request(MODELS_LS, {"run_id": options.run, "task": options.task}).models
        set_aside = client.request(MODELS_SET_ASIDE).set_aside
    if options.json:
        document = {
            "models": [each.document() for each in models],
            "set_aside": [each.document() for each in set_aside],
        }
        print_json(document, options.json)
        return DONE
    rows = [
        [
            row.name,
            _stage(row),
            _headline(row),
            size(row.size_bytes),
            row.task,
            row.sha256[:12],
            ", ".join(row.tags),
        ]
        for row in models
    ]
    head = ["version", "stage", "measured", "size", "task", "sha256", "tags"]
    print_table(head, rows, "no versions yet; `rengo run TASK` makes some")
    for row in set_aside:
        say(
            f"{row.name} is set aside until the next start of the server, "
            f"or for good by `rengo models rm {row.name}`: {row.reason}"
        )
    return DONE


def _headline(row: ModelRow) -> str:
    value = row.metrics.get(row.headline)
    return "-" if value is None else f"{row.headline} {figure(value)}"


def _stage(row: ModelRow) -> str:
    return "-" if row.stage == "none" else str(row.stage)


def show_model(options: argparse.Namespace) -> int:
    """Print one version."""
    with connect(options) as client:
        row = client.request(MODELS_SHOW, {"name": options.name})
    if options.json:
        print_json(row.document(), options.json)
    else:
        say(*_lines(row))
    return DONE


def _lines(row: ModelDetail) -> list[str]:
    manifest = row.manifest
    reason = f": {row.record.reason}" if row.record.reason else ""
    settings = ", ".join(f"{key} {value}" for key, value in manifest.algorithm_settings.items())
    training = ", ".join(f"{key} {value}" for key, value in manifest.training.items())
    metrics = ", ".join(f"{name} {figure(value)}" for name, value in sorted(row.metrics.items()))
    return [
        f"version   {row.name}",
        f"stage     {_stage(row)}{reason}",
        f"tags      {', '.join(row.tags) or '-'}",
        f"task      {row.task}, seed {manifest.seed}",
        f"algorithm {row.algorithm}{f' ({settings})' if settings else ''}",
        f"training  {training or 'as the task has it'}",
        f"made      {when(row.created_ms / 1000)}, {_making(manifest)}",
        f"parent    {_parent(manifest.parent)}",
        f"metrics   {metrics or '-'}",
        f"size      {size(row.size_bytes)}",
        f"sha256    {row.sha256}",
        f"key       {manifest.key}",
    ]


def _making(manifest: Manifest) -> str:
    if manifest.version == 0:
        return "what the run began with"
    names = ", ".join(manifest.cohort[:12])
    more = ", …" if manifest.cohort_size > 12 else ""
    return (
        f"round {manifest.version}, attempt {manifest.attempt}: "
        f"{count(manifest.cohort_size, 'update')} of {manifest.num_examples} examples "
        f"({names}{more})"
    )


def _parent(parent: Parent | None) -> str:
    if parent is None:
        return "-"
    return f"{parent.run_id}:{parent.version} (sha256 {parent.sha256[:12]})"


def promote(options: argparse.Namespace) -> int:
    """Put a version into production, at once or when a canary has shown that it is no worse."""
    trial = canary.trial_of(options)
    if trial is not None:
        return canary.try_out(options, trial)
    return _changed(
        options, MODELS_PROMOTE, {"name": options.name, "reason": options.reason}, _in_production
    )


def rollback(options: argparse.Namespace) -> int:
    """Put the version before back into production."""
    with connect(options) as client:
        now = client.request(MODELS_PRODUCTION, {"task": options.task})
    arguments = {"name": now.name, "reason": options.reason}
    return _changed(options, MODELS_ROLLBACK, arguments, _in_production)


def tag(options: argparse.Namespace) -> int:
    """Give or take a tag."""
    arguments = {"name": options.name, "label": options.label}
    operation = MODELS_TAG if options.verb == "tag" else MODELS_UNTAG
    return _changed(options, operation, arguments, _tagged)


def remove(options: argparse.Namespace) -> int:
    """Remove a version, also one that is set aside."""
    named = {"name": options.name}
    with connect(options) as client:
        set_aside = {row.name for row in client.request(MODELS_SET_ASIDE).set_aside}
        if options.name in set_aside:
            removed: SetAside | ModelRow = client.request(MODELS_DISCARD, named)
        else:
            removed = client.request(MODELS_RM, named)
    if options.json:
        print_json(removed.document(), options.json)
    else:
        say(f"{removed.name} was removed.")
    return DONE


def _changed(
    options: argparse.Namespace,
    operation: Operation[Any, ModelRow],
    arguments: dict[str, Any],
    outcome: Callable[[ModelRow], str],
) -> int:
    with connect(options) as client:
        row = client.request(operation, arguments)
    if options.json:
        print_json(row.document(), options.json)
    else:
        say(outcome(row))
    return DONE


def _in_production(row: ModelRow) -> str:
    return f"{row.name} is in production for task {row.task}."


def _tagged(row: ModelRow) -> str:
    return f"{row.name} has {', '.join(row.tags) or 'no tags'}."


def verify(options: argparse.Namespace) -> int:
    """Check a version's signature and bytes, or a file's that was fetched."""
    path = Path(options.name)
    with connect(options) as client:
        if path.is_file():
            manifest = verify_file(path, manifest_path(path), client.server_key)
        else:
            offer = find_model(client, options.name)
            manifest = offer.manifest
            with tempfile.TemporaryDirectory(prefix="rengo-verify-") as folder:
                download(client, offer, Path(folder) / "model.safetensors")
    document = {"name": manifest.name, "sha256": manifest.sha256, "verified": True}
    if options.json:
        print_json(document, options.json)
    else:
        say(
            f"{manifest.name} is what this site's server signed: "
            f"{size(manifest.size_bytes)}, sha256 {manifest.sha256}"
        )
    return DONE


def clean(options: argparse.Namespace) -> int:
    """Remove what nobody needs."""
    with connect(options) as client:
        answer = client.request(MODELS_GC, {"dry_run": options.dry_run}, timeout_s=600.0)
    if options.json:
        print_json(answer.document(), options.json)
        return DONE
    say(*answer.keys)
    if answer.objects > len(answer.keys):
        print(f"… and {answer.objects - len(answer.keys)} more")
    done = "Would remove" if answer.dry_run else "Removed"
    print(
        f"{done} {count(answer.objects, 'object')} of {size(answer.bytes)} and "
        f"{count(answer.uploads, 'unfinished upload')}."
    )
    return DONE
