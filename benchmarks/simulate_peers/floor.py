"""The floor: the bare products of stacked perceptrons in numpy, with no system around them."""

import numpy as np
from _job import job

given = job()
data = given.clients()
sizes = [
    (inputs, outputs)
    for kind, *each in given.layers
    if kind == "linear"
    for inputs, outputs in [each]
]
if any(kind in ("conv", "pool") for kind, *_ in given.layers):
    raise SystemExit("has no form for convolutions")
flat = np.concatenate([array.reshape(-1) for array in given.weights.values()])
random, rate = np.random.default_rng(0), np.float32(given.rate)


def views(rows):
    found, start = [], 0
    for inputs, outputs in sizes:
        middle = start + inputs * outputs
        found.append(
            (
                rows[:, start:middle].reshape(-1, outputs, inputs),
                rows[:, middle : middle + outputs][:, np.newaxis],
            )
        )
        start = middle + outputs
    return found


def step(w, g, x, t, counts):
    values = [x]
    for number, (weight, bias) in enumerate(w):
        if weight[0].size < 50_000:
            y = np.matmul(values[-1], weight.transpose(0, 2, 1))
        else:
            y = np.matmul(weight, values[-1].transpose(0, 2, 1)).transpose(0, 2, 1)
        y += bias
        values.append(np.maximum(y, 0, out=y) if number < len(w) - 1 else y)
    y -= np.maximum.reduce(y, 2, keepdims=True)
    np.exp(y, out=y)
    y /= np.add.reduce(y, 2, keepdims=True)
    y[np.arange(len(x))[:, np.newaxis], np.arange(x.shape[1]), t] -= 1
    own = np.arange(x.shape[1]) < counts[:, np.newaxis]
    y *= (own * (rate / counts[:, np.newaxis]))[:, :, np.newaxis].astype(np.float32)
    for number in range(len(w) - 1, -1, -1):
        np.matmul(y.transpose(0, 2, 1), values[number], out=g[number][0])
        np.add.reduce(y, 1, out=g[number][1], keepdims=True)
        if number:
            y = np.matmul(y, w[number][0])
            y *= values[number] > 0


for cohort in given.cohorts:
    given.begin_round()
    counts = np.array([len(data[number][0]) for number in cohort])
    rows = np.empty((len(cohort), flat.size), np.float32)
    rows[:] = flat
    changes = np.empty_like(rows)
    w, g = views(rows), views(changes)
    x = np.zeros((len(cohort), counts.max(), *data[0][0].shape[1:]), np.float32)
    x, t = x.reshape(*x.shape[:2], -1), np.zeros(x.shape[:2], np.int64)
    for _ in range(given.epochs):
        for number, client in enumerate(cohort):
            inputs, targets = data[client]
            order = random.permutation(len(inputs))
            x[number, : len(inputs)] = inputs.reshape(len(inputs), -1)[order]
            t[number, : len(inputs)] = targets[order]
        for at in range(0, counts.max(), given.batch):
            part = slice(at, at + given.batch)
            # a client without a batch has no example that counts
            left = np.clip(counts - at, 0, given.batch)
            step(w, g, x[:, part], t[:, part], np.maximum(left, 1))
            changes[left == 0] = 0
            rows -= changes
    flat = (rows * (counts / counts.sum())[:, np.newaxis]).sum(0).astype(np.float32)
    given.end_round()


def predict(inputs):
    y = inputs.reshape(len(inputs), -1)
    w = views(flat[np.newaxis])
    for number, (weight, bias) in enumerate(w):
        y = y @ weight[0].T + bias[0]
        y = np.maximum(y, 0) if number < len(w) - 1 else y
    return y


given.report(predict, np.__version__)
