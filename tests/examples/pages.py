"""Code blocks of the documentation, so that tests can run them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\S+\.py)\n")


def blocks(page: str, language: str | None = None) -> list[str]:
    """Return the page's code blocks, or those of one language, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for name, body in _BLOCK.findall(text) if language in {None, name}]


def files(page: str) -> dict[str, str]:
    """Return the page's Python files: blocks whose first line is a comment with a path."""
    found = {}
    for body in blocks(page, "python"):
        head = _FILE.match(body)
        if head is not None:
            found[head.group(1)] = body[head.end() :]
    return found
