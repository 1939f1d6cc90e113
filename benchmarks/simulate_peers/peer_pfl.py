"""pfl-research: its simulated backend with federated averaging, on torch."""

import importlib.metadata
import types

import torch
from _job import job, torch_model, torch_predict
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

given = job()
data = [tuple(map(torch.from_numpy, each)) for each in given.clients()]
network = torch_model(given)
loss_of = torch.nn.CrossEntropyLoss()
network.loss = types.MethodType(lambda self, x, y, **_: loss_of(self(x), y), network)
network.metrics = types.MethodType(lambda self, x, y, **_: {}, network)
order = iter([number for cohort in given.cohorts for number in cohort])


def of_user(number):
    inputs, targets = data[number]
    chosen = torch.randperm(len(inputs))
    return Dataset(raw_data=[inputs[chosen], targets[chosen]], user_id=str(number))


users = FederatedDataset(of_user, lambda: next(order))
model = PyTorchModel(
    model=network,
    local_optimizer_create=torch.optim.SGD,
    central_optimizer=torch.optim.SGD(network.parameters(), 1.0),
)


class Rounds(TrainingProcessCallback):
    def on_train_begin(self, *, model):
        given.begin_round()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        given.end_round()
        return False, Metrics()


FederatedAveraging().run(
    NNAlgorithmParams(
        central_num_iterations=len(given.cohorts),
        evaluation_frequency=10**9,
        train_cohort_size=len(given.cohorts[0]),
        val_cohort_size=0,
    ),
    SimulatedBackend(training_data=users, val_data=users),
    model,
    NNTrainHyperParams(
        local_num_epochs=given.epochs,
        local_learning_rate=given.rate,
        local_batch_size=given.batch,
    ),
    callbacks=[Rounds()],
)
given.report(torch_predict(network), f"pfl {importlib.metadata.version('pfl')}")
