"""What is in production, published to devices: a retained document a task, and URLs to fetch it by.

Called on the owner's thread.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.wire.messages import Message, ModelOffer, ModelRef, ModelRequest, ProductionDocument
from broker.wire.topics import Topics
from fl_server.dataplane.urls import SharedUrls
from storage.registry.registry import ModelRegistry
from storage.versions.version import Version


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
        self.epoch = epoch
        self._publish = publish
        self._clear = clear

    def publish_all(self) -> None:
        """Publish for every task what is in production."""
        for task in self._registry.tasks():
            self.publish(task)

    def publish(self, task: str) -> None:
        """Publish what is in production of a task."""
        version = self._registry.production(task)
        if version is None:
            self._clear(self._topics.model(task))
            return
        document = ProductionDocument(
            task=task,
            manifest=self._registry.signed(version),
            promotion=max(version.record.promotions),
            epoch=self.epoch,
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
