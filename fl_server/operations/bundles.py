"""What an operator can do with task bundles: see, push, find and remove them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field

from broker.wire.messages import Sha256
from fl_server.dataplane.bundles import MAX_BUNDLE_BYTES, KeptBundle, row
from fl_server.dataplane.urls import URL_LIFETIME_S
from fl_server.members.rules import AuditEvent
from fl_server.operations.arguments import PAGE_BYTES, Arguments, Deferred, Result
from fl_server.runs.definition import RunDefinition
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from fl_server.server import Server

Operation: TypeAlias = Callable[[Any], Result | Deferred]


class BundlesPage(Arguments):
    """How many bundles to pass over."""

    skip: Annotated[int, Field(ge=0)] = 0


class NewBundle(Arguments):
    """A bundle that is to be uploaded."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=1, le=MAX_BUNDLE_BYTES)]


class OneBundle(Arguments):
    """Names a bundle: NAME, or NAME@ and the start of its sha256."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}(@[0-9a-f]{1,64})?$")]


class BundleOperations:
    """The operations on bundles. All are called on the owner's thread.

    Args:
        caller: returns who asks.
        in_use: returns the definitions of the runs that go on or are being prepared, by run.
    """

    def __init__(
        self,
        server: Server,
        caller: Callable[[], str],
        in_use: Callable[[], dict[str, RunDefinition]],
    ) -> None:
        self._server = server
        self._caller = caller
        self._in_use = in_use
        self.table: dict[str, tuple[type[Arguments], Operation]] = {
            "bundles_ls": (BundlesPage, self.bundles_ls),
            "bundles_prepare": (NewBundle, self.bundles_prepare),
            "bundles_keep": (NewBundle, self.bundles_keep),
            "bundles_find": (OneBundle, self.bundles_find),
            "bundles_rm": (OneBundle, self.bundles_rm),
        }

    def bundles_ls(self, page: BundlesPage) -> Deferred:
        """The bundles, the latest made first; ``more`` says that there are others behind them."""

        def listed(bundles: list[KeptBundle]) -> Result:
            rows: list[Result] = []
            left = PAGE_BYTES
            for bundle in bundles[page.skip :]:
                rows.append(row(bundle))
                left -= len(json.dumps(rows[-1]))
                if left < 0:
                    break
            return {"bundles": rows, "more": page.skip + len(rows) < len(bundles)}

        return Deferred(self._server.bundles.list, listed)

    def bundles_prepare(self, wanted: NewBundle) -> Deferred:
        """Say where a bundle is to be uploaded."""
        store, bundles = self._server.store, self._server.bundles
        return Deferred(
            lambda: bundles.place(wanted.sha256),
            lambda url: {"url": url, "headers": store.upload_headers},
        )

    def bundles_keep(self, wanted: NewBundle) -> Deferred:
        """Check an uploaded bundle and keep it."""
        caller, bundles = self._caller(), self._server.bundles

        def kept(bundle: KeptBundle) -> Result:
            shown = row(bundle)
            detail = {"sha256": bundle.sha256, "signer": shown["signer"]}
            self._server.members.note(AuditEvent(caller, "bundle pushed", bundle.name, detail))
            return shown

        return Deferred(lambda: bundles.keep(wanted.sha256), kept)

    def bundles_find(self, wanted: OneBundle) -> Deferred:
        """One bundle, with a presigned GET of it."""
        store, bundles = self._server.store, self._server.bundles

        def found(bundle: KeptBundle) -> Result:
            key = bundles.keys.bundle(bundle.sha256)
            return row(bundle) | {"url": store.presign_get(key, URL_LIFETIME_S)}

        return Deferred(lambda: bundles.find(wanted.name), found)

    def bundles_rm(self, wanted: OneBundle) -> Deferred:
        """Remove a bundle that neither a run nor a canary needs any more."""
        caller, bundles = self._caller(), self._server.bundles

        def found(bundle: KeptBundle) -> Deferred:
            for run_id, definition in self._in_use().items():
                if definition.bundle is not None and definition.bundle.sha256 == bundle.sha256:
                    raise ConfigError(
                        f"{bundle.name}: run {run_id} needs it; wait for its end or stop it"
                    )
            canary = self._server.canaries.needs(bundle.sha256)
            if canary:
                raise ConfigError(f"{bundle.name}: {canary} needs it; wait for its verdict")

            def removed(_: object) -> Result:
                self._server.members.note(AuditEvent(caller, "bundle removed", bundle.name))
                return row(bundle)

            return Deferred(lambda: bundles.remove(bundle.sha256), removed)

        return Deferred(lambda: bundles.find(wanted.name), found)
