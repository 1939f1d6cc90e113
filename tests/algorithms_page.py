"""Writes docs/algorithms.md: python -m tests.algorithms_page > docs/algorithms.md"""

from __future__ import annotations

from collections.abc import Iterator

from algorithms.description import Description, Explanation, describe
from algorithms.registry import names
from benchmarks.tables.page import runs_of
from benchmarks.tables.results import Results
from benchmarks.tables.rows import ROWS, Row
from rengo.cli.machine.algorithms import FAMILIES, costs_in_words, explanations

_INTRO = """\
# Algorithms

This page is written from the code by `python -m tests.algorithms_page`; a test compares the two.

`rengo algorithms` lists the algorithms and `rengo algorithms NAME` explains one. A run takes one by
its name, and its settings beside it:

```sh
rengo run digits --set algorithm.name=fedprox --set algorithm.mu=0.1 --follow
```

Every algorithm runs in every mode, and on both engines unless the table says otherwise.

## Which to take

Begin with `fedavg`. `rengo data show TASK` tells how much the devices' data differ, and a run's
report how much their accuracies do; then take what is for that.

"""
_TAKE = (
    ("the devices' data are alike", "`fedavg`", ""),
    (
        "their data differ, and some devices do fewer steps",
        "`fedprox` or `fednova`",
        "fedprox-synthetic",
    ),
    (
        "they differ much, and the same devices take part often",
        "`scaffold`, `feddyn` or `feddc`",
        "drift-mnist",
    ),
    (
        "they differ much, and each device takes part seldom",
        "`fedcm` or `mimelite`: no state there",
        "",
    ),
    ("updates are small or noisy, as of language models", "`fedadam` or `fedyogi`", "server-mnist"),
    (
        "the devices that are served worst matter",
        "`qfedavg`, `term`, `afl` or `fedmgda`",
        "qfedavg-mnist",
    ),
    ("each device is to have a model of its own", "`ditto` or `apfl`", "personal-fashion"),
    ("a head of its own is enough for each", "`fedper` or `fedrep`", "personal-fashion"),
    (
        "the devices' sensors differ, so that inputs are scaled or tinted",
        "`fedbn`",
        "fedbn-domains",
    ),
    (
        "some devices are too weak for the whole model, or their links are",
        "`heterofl` or `fjord`",
        "",
    ),
    ("nearly all of them are", "`fedrolex`: they train all of it in turns", ""),
    ("a large model is trained before, and links are thin", "`lora` or `ffalora`", ""),
    (
        "there are a few kinds of devices",
        "`ifca`; or `cfl`, which finds out how many",
        "ifca-turned",
    ),
)
"""What is the case, what to take then, and the comparison that was measured, if any."""
_MEASURED = """
A personal model is measured beside the global one: its metrics begin with `personal_`.

[Results](results.md) has what was measured, beside what papers say, with settings and seeds; some
curves are with each family below. They are of small data and few rounds, and another setting has
another order: compare on yours by `rengo run TASK --sweep algorithm.name=fedavg,scaffold`.

## What each costs

Vectors have the size of the model: those that a client downloads beside it, uploads, and keeps from
round to round, and those that the server keeps. Gradients are those of a local step, and passes are
those over the client's data beside its steps.

"""
_RULES = """\
## Rules

A rule says how a round's updates become one. With all rules but `mean` a part of the devices may
send wrong updates, however large, and the model still learns from the others:

```sh
rengo run digits --set rule.name=trimmed_mean --set rule.share=0.2 --set cohort.size=10
```

They count every update alike, since a device could claim any number of examples, and apply to the
update and its running statistics. An algorithm whose clients send more than that, or whose server
weighs updates, has no rule but `mean`: another is refused with the reason. The server keeps every
update until the round's end, on its disk where memory does not do, and a rule by distance (`krum`,
`multi_krum`, `geometric_median`) reads all of them twice.
"""
_TRANSFORMS = """\
## Transforms

Transforms are done to updates around any algorithm, in the order of the list: on the device before
an update is sent, and on the server before the means are used.

```sh
rengo run digits --set 'transforms=[{name="sparsify", share=0.05}, {name="clip", norm=1}]'
```

What does not go together is refused when the run is submitted. What a device keeps for a transform
is permanent once its update counts, as an algorithm's state is.

**No privacy is claimed.** `clip` and `noise` are the arithmetic of differential privacy without its
guarantee: the noise is drawn from the run's seed, which devices are told; there is no accountant;
and metrics and numbers of examples are reported as they are.
"""
_COLUMNS = ["algorithm", "engines", "down", "up", "device", "server", "gradients", "passes"]


def render() -> str:
    """Return the whole page."""
    found = [describe(name) for name in names()]
    parts = [_INTRO + _choices() + _MEASURED + _costs(found)]
    for family, title in FAMILIES.items():
        parts.append(f"## {title}\n")
        parts.extend(_curves(family))
        parts.extend(_section(each) for each in found if each.family == family)
    beside = explanations()
    parts.append(_RULES)
    parts.extend(_part(each, "rule.") for each in beside["rules"])
    parts.append(_TRANSFORMS)
    parts.extend(_part(each, "") for each in beside["transforms"])
    return "\n".join(parts).rstrip() + "\n"


def _choices() -> str:
    measured = {row.name for row in _measured()}
    lines = ["| if | take | measured |", "| --- | --- | --- |"]
    for case, taken, name in _TAKE:
        link = f"[{name}](results.md#{name})" if name in measured else ""
        lines.append(f"| {case} | {taken} | {link} |")
    return "\n".join(lines) + "\n"


def _measured() -> list[Row]:
    """Return the comparisons that the page of results has."""
    results = Results()
    return [row for row in ROWS if runs_of(row, results) is not None]


def _curves(family: str) -> Iterator[str]:
    """Yield the measured curves of a family, where there are any."""
    for row in _measured():
        if row.family == family:
            yield f"![{row.title}](images/results-{family}.svg)\n"
            yield f"{row.title}. [How it was measured](results.md#{row.name}).\n"


def _costs(found: list[Description]) -> str:
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{' --- |' * len(_COLUMNS)}"]
    for each in found:
        costs = each.costs
        numbers = [costs.down, costs.up, costs.device, costs.server, costs.gradients, costs.passes]
        cells = [f"[{each.name}](#{each.name})", " ".join(each.engines), *map(str, numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _section(found: Description) -> str:
    return _part(found, "algorithm.") + "\n" + "\n".join(costs_in_words(found)) + "\n"


def _part(found: Description | Explanation, prefix: str) -> str:
    lines = [f"### {found.name}\n", found.summary + "\n"]
    if found.details:
        lines.append(found.details.replace("Attributes:\n", "") + "\n")
    lines.append(found.source + "\n")
    if found.settings:
        lines += ["| setting | default | allowed |", "| --- | --- | --- |"]
        lines += [
            f"| `{prefix}{each.name}` | {each.default} | {each.bounds} |" for each in found.settings
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(render(), end="")
