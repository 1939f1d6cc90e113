"""Rengo: `rengo.simulate` with the backend that it chooses itself, the round machine included."""

import os

from _job import job

from rengo.simulation.definition import Simulation, prepare
from rengo.simulation.run import run_prepared

given = job()
given.begin_round()
simulation = Simulation(
    given.task,
    given.settings,
    given.clients_count,
    given.partition,
    backend=os.environ.get("BENCH_BACKEND", "auto"),
    precision=os.environ.get("BENCH_PRECISION", "auto"),
)
found = run_prepared(prepare(simulation), progress=lambda coordinator, history: given.end_round())
given.write(found.accuracy, f"{found.choice.name}: {found.choice.reason}")
