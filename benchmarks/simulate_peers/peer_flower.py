"""Flower: its simulation on Ray, its strategy FedAvg; any ten clients do a cohort's work."""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_DEDUP_LOGS"] = "0"
import flwr
import torch
from _job import job, torch_model, torch_predict
from flwr.client import ClientApp, NumPyClient
from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

given = job()


class Client(NumPyClient):
    def fit(self, parameters, config):
        torch.set_num_threads(1)
        inputs, targets = map(torch.from_numpy, given.client(config["client"]))
        model = torch_model(given)
        with torch.no_grad():
            for parameter, array in zip(model.parameters(), parameters, strict=True):
                parameter.copy_(torch.from_numpy(array))
        loss_of = torch.nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=given.rate)
        for _ in range(given.epochs):
            order = torch.randperm(len(inputs))
            for at in range(0, len(inputs), given.batch):
                chosen = order[at : at + given.batch]
                optimizer.zero_grad()
                loss_of(model(inputs[chosen]), targets[chosen]).backward()
                optimizer.step()
        return [each.detach().numpy() for each in model.parameters()], len(inputs), {}


class Cohorts(FedAvg):
    def configure_fit(self, server_round, parameters, client_manager):
        cohort = given.cohorts[server_round - 1]
        client_manager.wait_for(len(cohort))
        given.begin_round()
        chosen = client_manager.sample(len(cohort))
        return [
            (proxy, FitIns(parameters, {"client": int(number)}))
            for proxy, number in zip(chosen, cohort, strict=True)
        ]

    def aggregate_fit(self, server_round, results, failures):
        if failures or len(results) != len(given.cohorts[0]):
            raise SystemExit(f"{len(failures)} clients failed: {failures[:1]}")
        self.latest, metrics = super().aggregate_fit(server_round, results, failures)
        given.end_round()
        return self.latest, metrics


strategy = Cohorts(
    fraction_evaluate=0.0,
    initial_parameters=ndarrays_to_parameters(list(given.weights.values())),
)
run_simulation(
    ServerApp(
        server_fn=lambda context: ServerAppComponents(
            strategy=strategy, config=ServerConfig(num_rounds=len(given.cohorts))
        )
    ),
    ClientApp(client_fn=lambda context: Client().to_client()),
    num_supernodes=len(given.starts) - 1,
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
)
model = torch_model(given)
with torch.no_grad():
    arrays = parameters_to_ndarrays(strategy.latest)
    for parameter, array in zip(model.parameters(), arrays, strict=True):
        parameter.copy_(torch.from_numpy(array))
given.report(torch_predict(model), f"flwr {flwr.__version__}")
