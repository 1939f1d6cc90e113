"""How a list travels in pages: the two keys that both ends know. Pure."""

from __future__ import annotations

AFTER = "after"
"""Among the arguments: the ``next`` of the page before, with the same request id."""
NEXT = "next"
"""Among a result: where the next page begins; it is not there in the last one."""
