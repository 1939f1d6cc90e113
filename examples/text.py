"""What a message is about, by the words in it: a bag of words."""

from __future__ import annotations

import zlib

import numpy as np

from rengo import Device, Linear, Task, TrainingSettings

TOPICS, PLACES = ["delivery", "payment", "account"], 512


class Messages(Task):
    """A count for each word in, one of three topics out; no list of words has to be shared."""

    training = TrainingSettings(local_epochs=2, batch_size=16, learning_rate=0.5)

    def model(self) -> list[Linear]:
        return [Linear(PLACES, len(TOPICS))]

    def data(self, device: Device) -> tuple:
        lines = (device.folder / "messages.tsv").read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t", 1) for line in lines]
        inputs = np.stack([bag_of(words) for _, words in rows])
        targets = np.array([TOPICS.index(topic) for topic, _ in rows])
        held_out = np.arange(len(rows)) % 5 == 0
        return (inputs[~held_out], targets[~held_out]), (inputs[held_out], targets[held_out])


def bag_of(words: str) -> np.ndarray:
    """Return how often each word occurs, at a place that is worked out from the word."""
    # not hash(), which differs from process to process
    places = [zlib.crc32(word.encode()) % PLACES for word in words.lower().split()]
    return np.bincount(places, minlength=PLACES).astype(np.float32)
