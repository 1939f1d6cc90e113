"""FLGo: its task made of the job's data, its FedAvg with the job's cohorts."""

import importlib
import importlib.metadata
import os
import sys
from pathlib import Path

from _job import allow_torchvision, job, torch_predict

library = allow_torchvision()
import flgo
import torch
from flgo.algorithm import fedavg
from flgo.benchmark.partition import BasicPartitioner

# its data sets are subsets with an access of their own, which torch refuses when they are made
del torch.utils.data.Subset.__getitems__
torch.utils.data.Subset.__init__ = lambda self, dataset, indices: self.__dict__.update(
    dataset=dataset, indices=indices
)
given = job()
CONFIGURATION = f"""
import sys
import torch
sys.path.append({str(Path(__file__).parent)!r})
from _job import Job, torch_model
given = Job({str(given.folder)!r})

class Pairs(torch.utils.data.TensorDataset):
    pass

def pairs(x, y):
    return Pairs(torch.from_numpy(x[:]), torch.from_numpy(y[:]))

train_data = pairs(given.x, given.y)
test_data = pairs(given.test_x, given.test_y)

def get_model():
    return torch_model(given)
"""


class AsDealt(BasicPartitioner):
    def __call__(self, data):
        bounds = given.starts
        return [list(range(bounds[n], bounds[n + 1])) for n in range(len(bounds) - 1)]


class CohortServer(fedavg.Server):
    def sample(self):
        return given.cohorts[self.current_round - 1]

    def iterate(self):
        given.begin_round()
        updated = super().iterate()
        given.end_round()
        return updated


class Algorithm:
    __name__ = "cohorts"
    Server, Client = CohortServer, fedavg.Client


os.chdir(given.folder)
sys.path.append(".")
Path("configuration.py").write_text(CONFIGURATION)
made = flgo.gen_benchmark_from_file("benched", "configuration.py", target_path=".")
partitioner = AsDealt()
partitioner.num_clients = len(given.starts) - 1
module = importlib.import_module(made)
# a chart of the task, which takes longer than the rounds
module.visualize = lambda *args: None
flgo.gen_task_by_(module, partitioner, "task", overwrite=True)
runner = flgo.init(
    "task",
    Algorithm(),
    {
        "num_rounds": len(given.cohorts),
        "num_epochs": given.epochs,
        "batch_size": given.batch,
        "learning_rate": given.rate,
        "learning_rate_decay": 1.0,
        "proportion": len(given.cohorts[0]) / partitioner.num_clients,
        "aggregate": "uniform",
        "train_holdout": 0.0,
        "eval_interval": -1,
        "no_log_console": True,
        "no_tqdm": True,
        "gpu": [],
    },
)
runner.run()
model = runner.model.eval()
given.report(torch_predict(model), f"flgo {importlib.metadata.version('flgo')}")
