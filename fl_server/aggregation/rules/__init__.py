"""How a round's updates become one: one rule in each file, whose name is the rule's name."""

from __future__ import annotations

from fl_server.aggregation.rules.base import Rule
from runtime.listing import ClassListing

RULES = ClassListing(__name__, "rule", Rule)
