"""BlazeFL: its server handler and its trainer, one client after the other, as in its example."""

import importlib.metadata

import torch
from _job import job, torch_model, torch_predict
from blazefl.contrib.fedavg import FedAvgBaseClientTrainer, FedAvgBaseServerHandler
from torch.utils.data import DataLoader, TensorDataset

given = job()
torch.set_num_threads(1)
data = [TensorDataset(*map(torch.from_numpy, each)) for each in given.clients()]


class Models:
    def select_model(self, model_name):
        return torch_model(given)


class Data:
    def get_dataset(self, type_, cid):
        return data[cid]

    def get_dataloader(self, type_, cid, batch_size=None, generator=None):
        return DataLoader(data[cid], batch_size=batch_size, shuffle=True, generator=generator)


cohort_size = len(given.cohorts[0])
server = FedAvgBaseServerHandler(
    Models(), "", Data(), len(given.cohorts), len(data), cohort_size / len(data), "cpu", 1000, 0
)
server.num_clients_per_round = cohort_size
trainer = FedAvgBaseClientTrainer(
    Models(), "", Data(), "cpu", len(data), given.epochs, given.batch, given.rate, 0
)
for cohort in given.cohorts:
    given.begin_round()
    trainer.local_process(server.downlink_package(), list(cohort))
    for package in trainer.uplink_package():
        server.load(package)
    given.end_round()
given.report(torch_predict(server.model), f"blazefl {importlib.metadata.version('blazefl')}")
