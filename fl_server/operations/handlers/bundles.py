"""What an operator can do with task bundles: see, push, find and remove them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl_server.dataplane.bundles import KeptBundle
from fl_server.dataplane.urls import URL_LIFETIME_S
from fl_server.members.rules import AuditEvent
from fl_server.operations import catalogue
from fl_server.operations.arguments import NewBundle, NoArguments, OneBundle
from fl_server.operations.call import Binding, Call, Deferred
from fl_server.operations.context import OperationsContext
from fl_server.operations.handlers.runs import RunOperations
from fl_server.operations.results.bundles import BundleList, BundleRow, BundleUpload, BundleUrl
from runtime.errors import ConfigError, NotFound


class BundleOperations:
    """The operations on bundles.

    Args:
        runs: says which bundles runs need.
    """

    def __init__(self, context: OperationsContext, runs: RunOperations) -> None:
        self._context = context
        self._bundles = context.bundles
        self._runs = runs

    def bindings(self) -> Sequence[Binding[Any, Any]]:
        """Return what carries out each operation."""
        return (
            Binding(catalogue.BUNDLES_LS, self.bundles_ls),
            Binding(catalogue.BUNDLES_PREPARE, self.bundles_prepare),
            Binding(catalogue.BUNDLES_KEEP, self.bundles_keep),
            Binding(catalogue.BUNDLES_FIND, self.bundles_find),
            Binding(catalogue.BUNDLES_RM, self.bundles_rm),
        )

    def bundles_ls(self, _: NoArguments, __: Call) -> Deferred[BundleList]:
        """Return the bundles, the latest made first."""

        def listed(bundles: list[KeptBundle]) -> BundleList:
            return BundleList(bundles=[BundleRow(**_row(each)) for each in bundles])

        return Deferred(self._bundles.list, listed)

    def bundles_prepare(self, wanted: NewBundle, _: Call) -> Deferred[BundleUpload]:
        """Say where a bundle is to be uploaded."""
        headers = self._context.store.upload_headers
        return Deferred(
            lambda: self._bundles.upload_url(wanted.sha256),
            lambda url: BundleUpload(url=url, headers=headers),
        )

    def bundles_keep(self, wanted: NewBundle, call: Call) -> Deferred[BundleRow]:
        """Check an uploaded bundle and store it under its sha256, where it may be already."""

        def kept(bundle: KeptBundle) -> BundleRow:
            row = BundleRow(**_row(bundle))
            detail = {"sha256": bundle.sha256, "signer": row.signer}
            act = AuditEvent(call.caller, "bundle pushed", bundle.name, detail)
            return call.conclude(row, act)

        return Deferred(lambda: self._bundles.accept(wanted.sha256), kept)

    def bundles_find(self, wanted: OneBundle, _: Call) -> Deferred[BundleUrl]:
        """Return one bundle, with a presigned GET of it."""

        def found(bundle: KeptBundle) -> BundleUrl:
            key = self._bundles.keys.bundle(bundle.sha256)
            url = self._context.store.presign_get(key, URL_LIFETIME_S)
            return BundleUrl(**_row(bundle), url=url)

        return Deferred(lambda: self._bundles.find(wanted.name), found)

    def bundles_rm(self, wanted: OneBundle, call: Call) -> Deferred[BundleRow]:
        """Remove a bundle that neither a run nor a canary needs any more.

        Its row is written first: afterwards there is nothing to tell.
        """
        planned = call.planned(BundleRow)

        def find() -> KeptBundle | None:
            try:
                return self._bundles.find(wanted.name)
            except NotFound:
                if planned is None:
                    raise
                return None

        def found(bundle: KeptBundle | None) -> BundleRow | Deferred[BundleRow]:
            if bundle is None:
                assert planned is not None
                return removed(planned)
            self._require_unneeded(bundle)
            row = BundleRow(**_row(bundle))
            call.plan(row)
            return Deferred(lambda: self._bundles.remove(bundle.sha256), lambda _: removed(row))

        def removed(row: BundleRow) -> BundleRow:
            return call.conclude(row, AuditEvent(call.caller, "bundle removed", row.name))

        return Deferred(find, found)

    def _require_unneeded(self, bundle: KeptBundle) -> None:
        for run_id, definition in self._runs.definitions().items():
            if definition.bundle is not None and definition.bundle.sha256 == bundle.sha256:
                raise ConfigError(
                    f"{bundle.name}: run {run_id} needs it; wait for its end or stop it"
                )
        canary = self._context.canaries.needs(bundle.sha256)
        if canary:
            raise ConfigError(f"{bundle.name}: {canary} needs it; wait for its verdict")


def _row(bundle: KeptBundle) -> dict[str, Any]:
    manifest = bundle.signed.manifest
    return {
        "name": bundle.name,
        "task": manifest.name,
        "version": manifest.version,
        "sha256": bundle.sha256,
        "size_bytes": bundle.size_bytes,
        "signer": "" if bundle.signed.signer is None else bundle.signed.signer.text,
        "created_ms": manifest.created_ms,
        "expires_ms": manifest.expires_ms,
        "dependencies": [each.requirement for each in manifest.dependencies],
        "memory_bytes": manifest.memory_bytes,
    }
