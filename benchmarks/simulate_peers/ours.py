"""Rengo: `rengo.simulate` with the backend that it chooses itself, the round machine included."""

import os

from _job import job

from rengo.simulation.definition import Simulation
from rengo.simulation.run import run_simulation

given = job()
given.begin_round()
found = run_simulation(
    Simulation(
        given.task,
        given.settings,
        given.clients_count,
        given.partition,
        backend=os.environ.get("BENCH_BACKEND", "auto"),
        engine=os.environ.get("BENCH_ENGINE", "auto"),
    ),
    watch=lambda coordinator, history: given.end_round(),
)
given.write(found.accuracy, f"{found.choice.name}: {found.choice.reason}")
