"""The plain loop: one client after the other in torch, as anyone would write it first."""

import copy

import torch
from _job import job, torch_model, torch_predict

given = job()
data = [tuple(map(torch.from_numpy, each)) for each in given.clients()]
model = torch_model(given)
loss_of = torch.nn.CrossEntropyLoss()
for cohort in given.cohorts:
    given.begin_round()
    total, mean = sum(len(data[number][0]) for number in cohort), None
    for number in cohort:
        inputs, targets = data[number]
        local = copy.deepcopy(model)
        optimizer = torch.optim.SGD(local.parameters(), lr=given.rate)
        for _ in range(given.epochs):
            order = torch.randperm(len(inputs))
            for at in range(0, len(inputs), given.batch):
                chosen = order[at : at + given.batch]
                optimizer.zero_grad()
                loss_of(local(inputs[chosen]), targets[chosen]).backward()
                optimizer.step()
        share = len(inputs) / total
        state = local.state_dict()
        if mean is None:
            mean = {name: tensor * share for name, tensor in state.items()}
        else:
            for name, tensor in state.items():
                mean[name] += tensor * share
    model.load_state_dict(mean)
    given.end_round()
given.report(torch_predict(model), torch.__version__)
