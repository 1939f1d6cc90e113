"""One site for each pair of broker and store, shared by all attacks on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rengo.site.preparation import SiteOptions
from rengo.site.site import Site
from runtime.security.identity import Identity
from tests.attacks.ground import Ground
from tests.attacks.intruders import KINDS_OF_SITE, Intruder, Kind
from tests.chaos import gated
from tests.support import require, scratch


@pytest.fixture(scope="package", params=KINDS_OF_SITE, ids=lambda kind: kind.broker)
def ground(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    kind: Kind = request.param
    if kind.broker == "mosquitto":
        require("mosquitto")
    root = tmp_path_factory.mktemp(f"attacks-{kind.broker}")
    with scratch(root, gated.FOLDER) as gates, pytest.MonkeyPatch.context() as patch:
        # what glibc frees is overwritten, so that a broker that uses it still falls at once
        patch.setenv("MALLOC_PERTURB_", "165")
        options = SiteOptions(broker=kind.broker, store=kind.store)
        with Site(root / "site", options=options) as site:
            made = Ground(kind, site, gates)
            try:
                yield made
            finally:
                made.close()
    assert site.broker._child.returncode == 0, "the broker fell"


@pytest.fixture
def alice(ground: Ground) -> Identity:
    """The victim, an admitted device."""
    return ground.device("alice")


@pytest.fixture
def mallory(ground: Ground) -> Iterator[Intruder]:
    """The attacker, an admitted device too, connected."""
    with ground.intruder("mallory") as intruder:
        yield intruder
