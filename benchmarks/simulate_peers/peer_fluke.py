"""fluke: its server, clients and aggregation, in one process."""

import importlib.metadata

import torch
from _job import allow_torchvision, job, torch_model, torch_predict

library = allow_torchvision()
from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.client import Client
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader
from fluke.server import Server

given = job()
FlukeENV().set_seed(0)
FlukeENV().set_device("cpu")
FlukeENV().set_eval_cfg(server=False, locals=False, pre_fit=False, post_fit=False)
order = iter(given.cohorts)


class Cohorts(Server):
    def get_eligible_clients(self, eligible_perc):
        given.begin_round()
        return [self.clients[number] for number in next(order)]

    def aggregate(self, eligible, client_models):
        super().aggregate(eligible, client_models)
        given.end_round()


def loader(inputs, targets):
    tensors = torch.from_numpy(inputs), torch.from_numpy(targets)
    return FastDataLoader(*tensors, num_labels=10, batch_size=given.batch, shuffle=True)


optimizer = OptimizerConfigurator(
    {"name": "SGD", "lr": given.rate}, {"name": "StepLR", "step_size": 10**9}
)
clients = [
    Client(number, loader(*each), None, optimizer, torch.nn.CrossEntropyLoss(), given.epochs)
    for number, each in enumerate(given.clients())
]
server = Cohorts(torch_model(given), None, clients, weighted=True)
share = len(given.cohorts[0]) / len(clients)
FedAVG(len(clients), None, DDict(), clients=clients, server=server).run(
    len(given.cohorts), share, finalize=False
)
given.report(torch_predict(server.model), f"fluke {importlib.metadata.version('fluke-fl')}")
