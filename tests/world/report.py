"""What a person sees of histories: a failing one in full, many in numbers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

from fl_server.rounds.facts import FACTS
from tests.world.history import Outcomes, live

TAIL = 120

# What a history's lines say when a kind of fault has struck.
STRIKES = {
    "server dies": "server  dies",
    "server dies before the journal": "dies before it has journalled",
    "device dies": "d1  dies",
    "connection drops": "loses its connection",
    "connection dies silently": "has a dead connection",
    "broker restarts": "broker  restarts ",
    "broker forgets sessions": "restarts without its sessions",
    "broker forgets all": "restarts with nothing",
    "message lost": "broker  loses",
    "will": "publishes the will of",
    "drain": "accepting=False",
    "pause": "journals RunPaused",
    "stop": "journals RunStopped",
    "object lost": "loses an object",
    "bit flipped at rest": "flips a bit at rest",
    "bit flipped on the way": "stores with one flipped bit",
    "forged result": "hears of a foreign key",
    "forged evaluation": "num_examples=1099511627776",
    "orders looked after": "timer=resend",
    "rest of who declined": "timer=rest,",
    "wait for who left": "timer=return",
    "URL expired": "asks for fresh URLs",
    "upload hopeless": "reason=the store answers no more",
    "training dies": "reason=the training process died",
    "task breaks": "reason=the task raised an error",
    "aggregation fails": "<- AggregationFailed",
    "late result": "status=late",
    "refused result": "status=refused",
    "update vanished": "<- UpdateVanished",
    "order of an old epoch": "an order of an old epoch",
}

# rounds that are requested from outside are those of a tree
FACTS = [name for name in FACTS if name not in {"RoundOpened", "RequestFailed"}]


def explain(outcome: Outcomes, *options: str) -> str:
    """Return why a history failed, its last lines, and how to see all of it."""
    words = ["--start", str(outcome.seed), "--seeds", "1", "--history", *options]
    replay = " ".join(["python", "-m", "tests.world", *words])
    skipped = max(0, len(outcome.lines) - TAIL - 1)
    shown = outcome.lines[:1] + ([f"… {skipped} lines …"] if skipped else [])
    shown += outcome.lines[1:][-TAIL:]
    return "\n".join(
        [
            f"seed {outcome.seed}: {outcome.failure}",
            *shown,
            f"seed {outcome.seed}: {outcome.failure}",
            f"replay with: {replay}",
        ]
    )


def digest(outcome: Outcomes) -> str:
    """Return a short name for all that happened."""
    text = "\n".join([*outcome.lines, str(outcome.value), outcome.status])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def totals(seeds: Iterable[int]) -> Counter[str]:
    """Return in how many of the histories each kind of fault struck and each fact was decided."""
    counts: Counter[str] = Counter(dict.fromkeys([*STRIKES, *FACTS], 0))
    for seed in seeds:
        outcome = live(seed, history=True)
        text = "\n".join(outcome.lines)
        counts.update(name for name, mark in STRIKES.items() if mark in text)
        counts.update({type(fact).__name__ for fact in outcome.journal})
    return counts
