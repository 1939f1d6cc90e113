"""The round machine under every ordering that hypothesis finds."""

from __future__ import annotations

from hypothesis import settings

from tests.property.machine_rounds import Rounds

TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=300, stateful_step_count=60)
