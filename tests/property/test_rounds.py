"""The round machine under every ordering that hypothesis finds."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.property.machine_rounds import Rounds


class TestRounds(Rounds.TestCase):
    settings = settings(max_examples=100, stateful_step_count=60)


@pytest.mark.soak
class TestRoundsForLong(Rounds.TestCase):
    settings = settings(max_examples=1000, stateful_step_count=60)
