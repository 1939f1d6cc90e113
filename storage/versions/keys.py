"""Object keys: the only module that builds or parses them.

projects/{p}/runs/{run}/global/{version}.safetensors
projects/{p}/runs/{run}/manifests/{version}.json
projects/{p}/runs/{run}/records/{version}.json
projects/{p}/runs/{run}/state/{version}.safetensors
projects/{p}/runs/{run}/base/{version}.safetensors
projects/{p}/runs/{run}/base_state/{version}.safetensors
projects/{p}/runs/{run}/partial/{round}.upd
projects/{p}/runs/{run}/parts/{version}/{digest}.safetensors
projects/{p}/runs/{run}/updates/{round}/{attempt}/{device}.upd
projects/{p}/epoch.json
projects/{p}/bundles/{sha256}.rtask
projects/{p}/bundles/incoming/{sha256}.rtask
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_RUN = re.compile(r"projects/([A-Za-z0-9_-]{1,64})/runs/([a-z0-9_-]{1,64})/")
_UPDATE = re.compile(r"updates/(\d{6,})/(\d{3,})/([a-z0-9_-]{1,64})\.upd")
_VERSION = re.compile(
    r"(?:(?:global|state|base|base_state)/(\d{6,})\.safetensors|(?:manifests|records)/(\d{6,})\.json"
    r"|partial/(\d{6,})\.upd)"
)
_PART = re.compile(r"parts/(\d{6,})/[0-9a-f]{64}\.safetensors")
_BUNDLE = re.compile(r"([0-9a-f]{64})\.rtask")


@dataclass(frozen=True)
class RunKeys:
    """The keys of one run."""

    project: str
    run_id: str

    @classmethod
    def of(cls, key: str) -> RunKeys | None:
        """Return the keys of the run that a key belongs to, or None."""
        match = _RUN.match(key)
        return None if match is None else cls(match[1], match[2])

    @property
    def prefix(self) -> str:
        """The start of every key of the run."""
        return f"{runs_prefix(self.project)}{self.run_id}/"

    @property
    def updates(self) -> str:
        """The start of every update's key."""
        return f"{self.prefix}updates/"

    def version(self, version: int) -> str:
        """A committed version of the global model."""
        return f"{self.prefix}global/{version:06d}.safetensors"

    def manifest(self, version: int) -> str:
        """A version's manifest, signed; never changed."""
        return f"{self.prefix}manifests/{version:06d}.json"

    def record(self, version: int) -> str:
        """A version's stage, tags and metrics, signed; replaced when one changes."""
        return f"{self.prefix}records/{version:06d}.json"

    def state(self, version: int) -> str:
        """The algorithm's server state that belongs to a version."""
        return f"{self.prefix}state/{version:06d}.safetensors"

    def base(self, version: int) -> str:
        """A version of a parent's, which a domain's devices train from or evaluate."""
        return f"{self.prefix}base/{version:06d}.safetensors"

    def base_state(self, version: int) -> str:
        """The algorithm's server state that belongs to a version of a parent's."""
        return f"{self.prefix}base_state/{version:06d}.safetensors"

    def partial(self, round_number: int) -> str:
        """The sums of a domain's devices in a round, for its parent."""
        return f"{self.prefix}partial/{round_number:06d}.upd"

    def of_domain(self, number: int) -> set[str]:
        """The objects of a number that a domain has of its parent's runs."""
        return {self.base(number), self.base_state(number), self.partial(number)}

    def part(self, version: int, digest: str) -> str:
        """A part of a version, which the next round's devices train."""
        return f"{self.prefix}parts/{version:06d}/{digest}.safetensors"

    def is_spent_part(self, key: str, version: int) -> bool:
        """Whether the key is a part of a version before this one."""
        match = _PART.fullmatch(key.removeprefix(self.prefix))
        return match is not None and int(match[1]) < version

    def update(self, round_number: int, attempt: int, device_id: str) -> str:
        """A device's update."""
        return f"{self.updates}{round_number:06d}/{attempt:03d}/{device_id}.upd"

    def is_spent_update(self, key: str, round_number: int, attempt: int) -> bool:
        """Whether the key is an update of this round and attempt or of an earlier one."""
        match = _UPDATE.fullmatch(key.removeprefix(self.prefix))
        return match is not None and (int(match[1]), int(match[2])) <= (round_number, attempt)

    def version_of(self, key: str) -> int | None:
        """Return the number of the version that an object of the run belongs to, or None."""
        match = _VERSION.fullmatch(key.removeprefix(self.prefix))
        return None if match is None else int(match[1] or match[2] or match[3])


def best_label(run_id: str) -> str:
    """Return the tag of a run's best version; a tag is one version's alone in a project."""
    return f"{run_id}.best"


def epoch_key(project: str) -> str:
    """The server's epoch as it was last, for a server whose journal is lost."""
    return f"projects/{project}/epoch.json"


def runs_prefix(project: str) -> str:
    """Return the start of the keys of all runs of a project."""
    return f"projects/{project}/runs/"


@dataclass(frozen=True)
class BundleKeys:
    """The keys of a project's task bundles."""

    project: str

    @property
    def prefix(self) -> str:
        """The start of every bundle's key."""
        return f"projects/{self.project}/bundles/"

    @property
    def arriving(self) -> str:
        """The start of the keys of bundles that are not checked yet."""
        return f"{self.prefix}incoming/"

    def bundle(self, sha256: str) -> str:
        """A bundle that the server has checked; never changed."""
        return f"{self.prefix}{sha256}.rtask"

    def incoming(self, sha256: str) -> str:
        """A bundle that an operator has uploaded."""
        return f"{self.arriving}{sha256}.rtask"

    def sha256_of(self, key: str) -> str | None:
        """Return the sha256 of the bundle of a key, or None."""
        match = _BUNDLE.fullmatch(key.removeprefix(self.prefix))
        return None if match is None else match[1]
