"""``rengo models get|export|import``: fetching a version's file, exporting and importing models."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from fl_client.tasks import listing, registry
from fl_client.tasks.base import Task
from rengo.cli.codes import DONE, INTERRUPTED
from rengo.cli.common import (
    Commands,
    add_command,
    add_site,
    connect,
    interruptible,
    operator_of,
    print_json,
    progress_stream,
)
from rengo.cli.operator.run import TASK_HELP, add_run_options
from rengo.cli.operator.run import run as run_task
from rengo.export.formats import FORMATS
from rengo.export.formats import export as write
from rengo.operator.models import (
    FetchedVersion,
    download,
    find_model,
    load,
    manifest_path,
    part_path,
)
from rengo.terminal.format import size
from rengo.terminal.lines import say
from rengo.terminal.transfer_bar import open_meter
from runtime.errors import ConfigError
from storage.versions.manifest import Manifest

_NAME = "RUN:VERSION, RUN (its latest), TASK@production, a tag, or the start of the sha256"


def add_file_verbs(verbs: Commands) -> None:
    """Add the verbs."""
    parser = add_command(verbs, "get", get, "bring a version's file and its signed manifest here")
    parser.add_argument("name", help=_NAME)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to, a file or a folder (default: RUN-VERSION.safetensors, here)",
    )
    _add_common(parser)
    parser = add_command(verbs, "export", export, "write a model for other programs")
    parser.add_argument("source", help=f"{_NAME}; or a safetensors file")
    parser.add_argument(
        "--format", choices=FORMATS, required=True, help="in which form; ONNX is checked"
    )
    parser.add_argument(
        "--task",
        metavar="TASK",
        help="a task's name or FILE.py:CLASS, needed for ONNX (default: the version's own)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to (default: named after the model)"
    )
    _add_common(parser)
    parser = add_command(
        verbs, "import", take, "train a task from weights that are there: a run's version 0"
    )
    parser.add_argument("file", help="a safetensors file, or the name of a version of this site")
    parser.add_argument("task", help=TASK_HELP)
    add_run_options(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_site(parser)
    parser.add_argument("--json", metavar="FILE", help="write one JSON document, - for stdout")


def get(options: argparse.Namespace) -> int:
    """Bring a version's file here."""
    out = progress_stream(options.json)
    path: Path | None = None
    try:
        with interruptible(), connect(options) as client:
            offer = find_model(client, options.name)
            manifest = offer.manifest
            path = _place(options.output, f"{_name_of(manifest)}.safetensors")
            with open_meter(manifest.name, manifest.size_bytes, out) as watch:
                moved = download(client, offer, path, watch)
    except KeyboardInterrupt:
        say(_interrupted(path), out=out)
        return INTERRUPTED
    say(
        f"{manifest.name}, as this site's server signed it, is in {path}: "
        f"{size(manifest.size_bytes)}",
        f"Its manifest lies beside it: {manifest_path(path)}",
        out=out,
    )
    document = {
        "name": manifest.name,
        "path": str(path),
        "manifest_path": str(manifest_path(path)),
        "sha256": manifest.sha256,
        "size_bytes": manifest.size_bytes,
        "moved_bytes": moved,
    }
    print_json(document, options.json)
    return DONE


def _place(output: Path | None, name: str) -> Path:
    if output is None:
        return Path(name)
    return output / name if output.is_dir() else output


def _interrupted(path: Path | None) -> str:
    part = None if path is None else part_path(path)
    if part is None or not part.is_file():
        return "Interrupted."
    return (
        f"Interrupted. {size(part.stat().st_size)} are in {part}; "
        "the same command goes on from there."
    )


def export(options: argparse.Namespace) -> int:
    """Write a model for other programs."""
    out = progress_stream(options.json)
    operator = operator_of(options.data_dir)
    key = None if operator is None else operator.believed
    with interruptible():
        held = load(options.source, key, lambda: connect(options))
        path = _place(options.output, f"{_stem(held)}{FORMATS[options.format]}")
        if manifest_path(path).exists() or path == Path(options.source):
            raise ConfigError(f"{path} holds a model already; name another file by --output")
        check = write(held, options.format, path, _task(options.task, held))
    say(f"{_origin(held)} is in {path}: {size(path.stat().st_size)}", out=out)
    if check is not None:
        say(
            f"onnxruntime differs from torch by at most {check.difference:.1e} "
            f"over {check.examples} {check.data}",
            f"Inputs: {', '.join(check.inputs)}",
            out=out,
        )
    document = {
        "source": held.name,
        "path": str(path),
        "format": options.format,
        "verified": held.manifest is not None,
        "check": None if check is None else asdict(check),
    }
    print_json(document, options.json)
    return DONE


def take(options: argparse.Namespace) -> int:
    """Submit a run that begins with what is there, as ``rengo run --from`` does."""
    options.initial = options.file
    return run_task(options)


def _stem(held: FetchedVersion) -> str:
    return Path(held.name).stem if held.manifest is None else _name_of(held.manifest)


def _origin(held: FetchedVersion) -> str:
    if held.manifest is None:
        return f"{held.name} (from elsewhere: nothing to verify it by)"
    return f"{held.manifest.name}, as this site's server signed it,"


def _task(spec: str | None, held: FetchedVersion) -> Task | None:
    if spec is not None:
        return registry.load_task(spec)
    if held.manifest is not None and listing.is_named(held.manifest.task):
        return registry.load_task(held.manifest.task)
    return None


def _name_of(manifest: Manifest) -> str:
    return f"{manifest.run_id}-{manifest.version}"
