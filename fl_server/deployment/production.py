"""What is in production, told to the devices: a retained document a task, and URLs to fetch it by.

Called on the owner's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.wire.messages import Message, ModelOffer, ModelRef, ModelRequest, ProductionDocument
from broker.wire.topics import Topics
from fl_server.runs.active import URL_LIFETIME_S
from storage.registry.registry import ModelRegistry
from storage.store.objects import ObjectStore
from storage.versions.index import Version

_SHARE_URL_S = 60.0
_KEPT_URLS = 64


@dataclass
class SharedUrls:
    """Presigned GETs that many devices share: signing one for each costs more than all else."""

    store: ObjectStore
    _signed: dict[str, tuple[str, float]] = field(default_factory=dict, repr=False)

    def of(self, key: str) -> str:
        """Return a URL of an object, signed a minute ago at most."""
        now_s = time.monotonic()
        url, signed_s = self._signed.get(key, ("", -_SHARE_URL_S))
        if not url or now_s - signed_s > _SHARE_URL_S:
            url = self.store.presign_get(key, URL_LIFETIME_S)
            self._signed.pop(key, None)
            self._signed[key] = (url, now_s)
            if len(self._signed) > _KEPT_URLS:
                del self._signed[next(iter(self._signed))]
        return url


class ProductionDocuments:
    """The documents at ``model/{task}/state``.

    Args:
        publish: sends a message to a topic and has it retained.
        clear: removes the retained document of a topic.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        topics: Topics,
        epoch: int,
        publish: Callable[[str, Message], None],
        clear: Callable[[str], None],
    ) -> None:
        self._registry = registry
        self._topics = topics
        self._epoch = epoch
        self._publish = publish
        self._clear = clear

    def publish_all(self) -> None:
        """Say of every task what is in production."""
        for task in sorted({version.manifest.task for version in self._registry.versions()}):
            self.publish(task)

    def publish(self, task: str) -> None:
        """Say what is in production of a task."""
        version = self._registry.production(task)
        if version is None:
            self._clear(self._topics.model(task))
            return
        document = ProductionDocument(
            task=task,
            manifest=self._registry.signed(version),
            promotion=max(version.record.promotions),
            epoch=self._epoch,
        )
        self._publish(self._topics.model(task), document)

    def offer(self, wanted: ModelRequest, urls: SharedUrls) -> ModelOffer | None:
        """Return where a device finds what is in production, None when it asks for another."""
        version = self._registry.production(wanted.task)
        if version is None or version.manifest.sha256 != wanted.sha256:
            return None
        return ModelOffer(task=wanted.task, model=model_ref(version, urls))


def model_ref(version: Version, urls: SharedUrls) -> ModelRef:
    """Return where a version lies."""
    manifest = version.manifest
    return ModelRef(
        url=urls.of(manifest.key),
        key=manifest.key,
        sha256=manifest.sha256,
        size_bytes=manifest.size_bytes,
    )
