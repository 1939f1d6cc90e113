"""The rows of the tables: what is run, what was published of it, and what is claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from benchmarks.tables.claims import (
    Ahead,
    Alike,
    Claim,
    Last,
    Quantity,
    Recovered,
    RoundsTo,
    Sent,
    Within,
)
from benchmarks.tables.setting import Setting

Family: TypeAlias = Literal["server", "drift", "fairness", "personal", "clusters"]

_HERE = Path(__file__).resolve().parent
_ACCURACY = Last()
_PERSONAL = Last("personal_accuracy", "accuracy on own data, %", otherwise="accuracy")
_FEDAVG = "McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629"


@dataclass(frozen=True)
class Row:
    """A comparison.

    Attributes:
        family: of the algorithms that it is about, in whose plot its curves are; "" for none.
        source: whose figures the references are.
        references: published figures by variant, as text.
        shortened: in what the runs are less than the published ones; "" for in nothing.
        remark: what is to be known of the result.
    """

    name: str
    title: str
    source: str
    variants: Mapping[str, Setting]
    quantities: Sequence[Quantity]
    claims: Sequence[Claim]
    references: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    family: Family | Literal[""] = ""
    metric: str = "accuracy"
    shortened: str = ""
    remark: str = ""


def task_of(name: str) -> str:
    """Return a task of `tasks.py` as `load_task` takes it."""
    return f"{_HERE / 'tasks.py'}:{name}"


def _algorithms(base: Setting, **chosen: Mapping[str, float]) -> dict[str, Setting]:
    """Return a setting with each of some algorithms, by their names."""
    return {name: replace(base, algorithm=name, options=each) for name, each in chosen.items()}


_TWO_NN = Setting("mnist", clients=100, cohort=10, rounds=150, partition="iid", stop_at=0.97)
_TO_97 = RoundsTo(0.97)
FEDAVG = Row(
    name="fedavg-mnist-2nn",
    title="FedAvg on MNIST, 2NN: 100 clients, 10 in a round, B 10, E 1, learning rate 0.1",
    source=f"the setting of {_FEDAVG}, table 2; references from a plain loop, three seeds",
    variants={"iid": _TWO_NN, "two shards": replace(_TWO_NN, rounds=500, partition="shards:2")},
    quantities=(_TO_97,),
    references={"iid": "55 to 58", "two shards": "246 to 279"},
    claims=(
        Within("iid", 0.9 * 55, 1.1 * 58, _TO_97.title),
        Within("two shards", 0.9 * 246, 1.1 * 279, _TO_97.title),
    ),
)

_SYNTHETIC = Setting("synthetic", clients=30, cohort=1, rounds=200)
_LAST_20 = Last(title="accuracy, %, mean of the last 20 rounds", over=20)
FEDPROX = Row(
    name="fedprox-synthetic",
    title="FedProx on Synthetic(1, 1) with 90% stragglers: 30 users, 10 in a round, E 20, B 10, "
    "learning rate 0.01, 200 rounds",
    source="T. Li et al., MLSys 2020, https://arxiv.org/abs/1812.06127, figure 1; references from "
    "a plain loop, three seeds",
    variants={
        "FedAvg drops them": _SYNTHETIC,
        "FedProx, mu 1": replace(
            _SYNTHETIC,
            task=task_of("Stragglers"),
            cohort=10,
            algorithm="fedprox",
            options={"mu": 1.0},
        ),
    },
    quantities=(_LAST_20,),
    references={"FedAvg drops them": "63.8", "FedProx, mu 1": "86.3"},
    claims=(Ahead(("FedProx, mu 1",), "FedAvg drops them", _LAST_20.title, by=15.0),),
    remark="FedAvg without nine stragglers of ten is FedAvg with a cohort of one. Each client of "
    "FedProx is a straggler with a probability of 0.9, where the paper has exactly nine of ten. "
    "The gap depends on the draw of the users: from 8 to 17 points here, from 4 to 49 in the "
    "reference, where one seed of three brings most of the mean.",
)

_DRIFT = Setting(
    task_of("FewerMnist"),
    clients=100,
    cohort=20,
    rounds=100,
    partition="dirichlet:0.1",
    training={"local_epochs": 5, "batch_size": 50, "weight_decay": 1e-3, "clip_norm": 10.0},
    every=5,
)
_LAST_5 = Last(title="accuracy, %, mean of the last 5 measured", over=5)
DRIFT = Row(
    name="drift-mnist",
    title="FedAvg, FedProx, SCAFFOLD and FedDyn on MNIST, Dirichlet 0.1: 100 clients, 20 in a "
    "round, E 5, B 50, weight decay 0.001, gradients clipped to 10",
    source="FLGo-Bench, five seeds",
    variants=_algorithms(
        _DRIFT, fedavg={}, fedprox={"mu": 0.1}, scaffold={}, feddyn={"alpha": 0.03}
    ),
    quantities=(_LAST_5, RoundsTo(0.9)),
    references={"fedavg": "98.31", "fedprox": "98.36", "scaffold": "99.11", "feddyn": "98.89"},
    claims=(
        Ahead(("scaffold", "feddyn"), "fedavg", _LAST_5.title),
        Ahead(("scaffold",), "fedavg", RoundsTo(0.9).title, lower=True),
    ),
    seeds=(0,),
    family="drift",
    shortened="100 rounds in place of 1,000, 12,000 images in place of 60,000, 2NN in place of the "
    "CNN, no decay of the learning rate, one seed in place of five",
    remark="SCAFFOLD's speed is claimed by another source too: on EMNIST, Dirichlet 0.5, after 100 "
    "rounds FedAvg has 64.40, FedProx 65.90 and SCAFFOLD 76.55.",
)

_TRAP = Setting(
    task_of("FewerFashion"),
    clients=10,
    rounds=15,
    partition="shards:1",
    training={"local_epochs": 10, "batch_size": 64, "learning_rate": 0.01, "momentum": 0.9},
)
_BEST = Last(title="accuracy, %, mean of the last 5 rounds", over=5)
TRAP = Row(
    name="scaffold-momentum",
    title="SCAFFOLD where clients have momentum of 0.9: Fashion-MNIST, 10 clients with one label "
    "each, E 10, B 64",
    source="Li et al., ICDE 2022 (NIID-Bench), https://arxiv.org/abs/2102.02079, table 3",
    variants={
        "fedavg, momentum": _TRAP,
        "scaffold, momentum": replace(_TRAP, algorithm="scaffold"),
        "scaffold, learning rate 0.1 in place of momentum": replace(
            _TRAP,
            algorithm="scaffold",
            training={**_TRAP.training, "momentum": 0.0, "learning_rate": 0.1},
        ),
    },
    quantities=(_BEST,),
    references={"fedavg, momentum": "28.39", "scaffold, momentum": "10.00"},
    claims=(Ahead(("fedavg, momentum",), "scaffold, momentum", _BEST.title),),
    seeds=(0,),
    shortened="6,000 images in place of 60,000, 2NN in place of a CNN, 15 rounds in place of 50, "
    "one seed",
    remark="`rengo run` warns where SCAFFOLD or FedNova meets momentum or Adam on the clients.",
)

_PARITY = replace(
    _TRAP,
    rounds=25,
    partition="dirichlet:0.5",
    training={"local_epochs": 5, "batch_size": 64, "learning_rate": 0.05},
)
PARITY = Row(
    name="fednova-fashion",
    title="FedNova on Fashion-MNIST, Dirichlet 0.5: 10 clients, all in a round, B 64",
    source="Li et al., ICDE 2022 (NIID-Bench), https://arxiv.org/abs/2102.02079, table 3",
    variants=_algorithms(_PARITY, fedavg={}, fednova={}),
    quantities=(_ACCURACY,),
    references={"fedavg": "88.09", "fednova": "88.22"},
    claims=(Alike("fednova", "fedavg", 1.0, _ACCURACY.title),),
    seeds=(0,),
    shortened="6,000 images in place of 60,000, 2NN in place of a CNN, 25 rounds in place of 50, "
    "E 5 in place of 10, no momentum, for which FedNova has another arithmetic, one seed",
)

_UNEQUAL = Setting(task_of("UnequalSteps"), clients=10, rounds=300, every=20)
_EXCESS = Last("excess", "loss above the least one", scale=1.0, digits=4)
NOVA = Row(
    name="fednova-unequal-steps",
    title="Least squares, clients of 1 to 5 steps a round: how far above the least loss a run ends",
    source="the invariant of Wang et al., NeurIPS 2020, https://arxiv.org/abs/2007.07481, theorem "
    "1: FedNova reaches the minimum of the clients' mean loss, FedAvg another point",
    variants=_algorithms(_UNEQUAL, fedavg={}, fednova={}),
    quantities=(_EXCESS,),
    references={"fedavg": "not 0", "fednova": "0, up to the drift of local steps"},
    claims=(Ahead(("fednova",), "fedavg", _EXCESS.title, lower=True),),
    metric="excess",
)

_FAIR = Setting(
    task_of("FairMnist"),
    clients=100,
    cohort=10,
    rounds=600,
    partition="shards:2",
    training={"batch_size": 64, "momentum": 0.5},
    measured_on="devices",
    every=50,
)
_MEAN = Last(title="accuracy, %, of all clients' examples", over=3)
_WORST = Last("worst_tenth", "worst tenth of the clients, %", over=3)
_VARIANCE = Last("variance", "variance over clients, %²", over=3, scale=1e4, digits=0)
FAIR = Row(
    name="qfedavg-mnist",
    title="q-FedAvg on MNIST, two shards: 100 clients, 10 in a round, B 64, E 1, learning rate "
    "0.1, momentum 0.5",
    source="FLGo-Bench: accuracy, worst tenth, variance",
    variants=_algorithms(_FAIR, fedavg={}, qfedavg={"q": 0.2}, term={}),
    quantities=(_MEAN, _WORST, _VARIANCE),
    references={"fedavg": "95.96, 87.47, 15.06", "qfedavg": "96.09, 88.40, 12.58"},
    claims=(
        Ahead(("qfedavg",), "fedavg", _WORST.title),
        Ahead(("qfedavg",), "fedavg", _VARIANCE.title, lower=True),
    ),
    family="fairness",
    metric="worst_tenth",
    seeds=(0,),
    shortened="600 rounds in place of 2,000, one seed, 16,000 images in place of 60,000 (of each "
    "client's 160 a quarter is held out)",
    remark="Why it does not hold is not established. q-FedAvg divides its step by an estimate of "
    "the loss's curvature, so that being behind after fewer rounds is expected; 2,000 rounds, "
    "which would tell, were not run.",
)

_OWN = Setting(
    task_of("PersonalFashion"),
    clients=20,
    rounds=16,
    partition="shards:2",
    training={"learning_rate": 0.05},
    measured_on="devices",
    every=4,
)
_PERSONAL_ONES = ("ditto", "apfl", "perfedavg", "fedper", "fedrep", "fedrod")
PERSONAL = Row(
    name="personal-fashion",
    title="Personal models on Fashion-MNIST, two classes each: 20 clients, all in a round, B 10, "
    "E 1, a quarter of each client's examples held out",
    source="PFLlib, 2,000 rounds, https://github.com/TsingZ0/PFLlib",
    variants=_algorithms(_OWN, fedavg={}, **{name: {} for name in _PERSONAL_ONES}),
    quantities=(_PERSONAL,),
    references={
        "fedavg": "80.41",
        "ditto": "99.44",
        "apfl": "99.41",
        "perfedavg": "99.18",
        "fedper": "99.47",
        "fedrep": "99.56",
        "fedrod": "99.52",
    },
    claims=(Ahead(_PERSONAL_ONES, "fedavg", _PERSONAL.title, by=5.0),),
    seeds=(0,),
    family="personal",
    metric="personal_accuracy",
    shortened="16 rounds in place of 2,000, 3,000 images in place of 70,000, a quarter of the "
    "channels, learning rate 0.05, one seed; pFedMe (99.35) and FedBABU (99.41), which take more "
    "time, are left out",
    remark="Two shards of a client are of one or two classes.",
)

_SHIFTED = Setting(
    task_of("Domains"),
    clients=8,
    rounds=60,
    partition="iid+domains",
    measured_on="devices",
    every=3,
)
FEDBN = Row(
    name="fedbn-domains",
    title="FedBN where each device sees its images in its own way: as they are, turned, inverted, "
    "tinted; 8 clients, all in a round",
    source="X. Li et al., ICLR 2021, https://arxiv.org/abs/2102.07623: curves only",
    variants=_algorithms(_SHIFTED, fedavg={}, fedbn={}),
    quantities=(_PERSONAL,),
    claims=(Ahead(("fedbn",), "fedavg", _PERSONAL.title),),
    metric="personal_accuracy",
    shortened="digits of 8 x 8 pixels in place of five sets of digits and signs",
)

_CLUSTERS = Setting(
    task_of("Turned"),
    clients=40,
    rounds=40,
    partition="iid+turned",
    training={"max_steps": 10, "batch_size": 150},
    measured_on="devices",
    every=4,
)
IFCA = Row(
    name="ifca-turned",
    title="IFCA on MNIST turned by 0, 90, 180 and 270 degrees: one hidden layer, all clients, 10 "
    "local steps, learning rate 0.1",
    source="Ghosh et al., NeurIPS 2020, https://arxiv.org/abs/2006.04088, table 1: IFCA above one "
    "global model, above training alone",
    variants={
        **_algorithms(_CLUSTERS, ifca={"clusters": 4, "spread": 0.05}, fedavg={}),
        # a personal model that nothing pulls to the global one
        "alone": replace(_CLUSTERS, algorithm="ditto", options={"lam": 0.0}),
    },
    quantities=(_PERSONAL, Recovered(4)),
    references={"ifca": "all clusters recovered"},
    claims=(
        Within("ifca", 100, 100, Recovered(4).title),
        Ahead(("ifca",), "fedavg", _PERSONAL.title),
        Ahead(("ifca",), "alone", _PERSONAL.title),
    ),
    seeds=(0, 1),
    family="clusters",
    metric="personal_accuracy",
    shortened="40 clients of 200 images in place of 1,200 and more, 40 rounds",
    remark="Which clusters are found depends on the first models, as in the paper, which begins "
    "anew with others until all are; here a run is one beginning.",
)

_STEPS = Setting(
    task_of("FewerMnist"),
    clients=100,
    cohort=10,
    rounds=60,
    partition="shards:2",
    every=2,
)
SERVER = Row(
    name="server-mnist",
    title="Server optimisers on MNIST, two shards: 10 of 100 clients, B 10, E 1, 2NN",
    source="no small table is published; their steps are held against the papers' formulas in "
    "`tests/unit/algorithms`",
    variants=_algorithms(
        _STEPS, fedavg={}, fedavgm={}, fedexp={}, fedadam={}, fedyogi={}, fedadagrad={}
    ),
    quantities=(_LAST_5,),
    claims=(),
    seeds=(0,),
    family="server",
    shortened="a fifth of MNIST, 60 rounds, the defaults of each algorithm, one seed",
)

_WIDE = Setting(
    task_of("FewerMnist"),
    clients=100,
    cohort=10,
    rounds=40,
    partition="iid",
    training={"local_epochs": 5, "learning_rate": 0.01, "momentum": 0.9},
    every=4,
)
_HALF_NARROW = {f"client-{number:05d}": 1 / 16 for number in range(0, 100, 2)}
_LAST_3 = Last(title="accuracy, %, mean of the last 3 measured", over=3)
_SENT = Sent()
HETEROFL = Row(
    name="heterofl-mnist",
    title="HeteroFL on MNIST, IID: widths 1 and 1/16 mixed; 10 of 100 clients, E 5, B 10, learning "
    "rate 0.01, momentum 0.9",
    source="Diao et al., ICLR 2021, https://arxiv.org/abs/2010.01264, table 2",
    variants={
        "all wide": _WIDE,
        "half of them narrow": replace(
            _WIDE, algorithm="heterofl", options={"widths": _HALF_NARROW}
        ),
        "all narrow": replace(_WIDE, task=task_of("NarrowMnist")),
    },
    quantities=(_LAST_3, _SENT),
    references={"all wide": "99.47", "half of them narrow": "99.49", "all narrow": "98.46"},
    claims=(
        Alike("half of them narrow", "all wide", 1.0, _LAST_3.title),
        Ahead(("half of them narrow",), "all narrow", _LAST_3.title),
        Within("half of them narrow", 0, 55, _SENT.title),
    ),
    seeds=(0,),
    shortened="2NN in place of the CNN with batch normalisation, 12,000 images in place of 60,000, "
    "40 rounds in place of 200, one seed, within 1 point in place of 0.2",
    remark="All narrow is a model of that size by itself, whose bytes are a whole model's.",
)

ROWS = (
    FEDAVG,
    FEDPROX,
    SERVER,
    DRIFT,
    TRAP,
    PARITY,
    NOVA,
    FAIR,
    PERSONAL,
    FEDBN,
    IFCA,
    HETEROFL,
)

ELSEWHERE = {
    "FedAdam, FedYogi, FedAdagrad": "no small table is published. `tests/unit/algorithms` holds "
    "each of their steps against the papers' formulas on fixed vectors.",
    "HierFAVG with kappa2 of 1": "a tree's model is the flat one, bit for bit, for every "
    "algorithm (`tests/contract/test_tree_sums.py`) and through kills and faults "
    "(`tests/chaos/test_trees.py`, `tests/world/test_tree.py`). Other kappas are not there yet.",
    "FedBuff": "asynchronous rounds are not there yet.",
    "FedAvg with the CNN on MNIST, rounds to 99%": "a run takes a quarter of an hour of one core, "
    "and is not among these.",
}
"""What is published of algorithms, and why it is not in the rows."""
