"""FedJAX: its own federated averaging, its clients compiled by JAX."""

import jax

# its last release is older than JAX's, which has dropped this name
jax.tree_map = jax.tree_util.tree_map

import fedjax
import jax.numpy as jnp
from _job import job

given = job()
data = [fedjax.ClientDataset({"x": x, "y": y}) for x, y in given.clients()]
params = {name: jnp.asarray(array) for name, array in given.weights.items()}


def scores(params, x):
    arrays = iter(params[name] for name in given.names)
    for kind, *sizes in given.layers:
        if kind == "flatten":
            x = x.reshape(len(x), -1)
        elif kind == "relu":
            x = jnp.maximum(x, 0)
        elif kind == "pool":
            window = (1, 1, sizes[0], sizes[0])
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
        elif kind == "conv":
            weight, bias = next(arrays), next(arrays)
            x = jax.lax.conv(x, weight, (1, 1), "SAME") + bias[:, None, None]
        else:
            weight, bias = next(arrays), next(arrays)
            x = x @ weight.T + bias
    return x


def loss(params, batch, rng):
    del rng
    rows = jax.nn.log_softmax(scores(params, batch["x"]))
    return -jnp.mean(jnp.take_along_axis(rows, batch["y"][:, None], 1))


algorithm = fedjax.algorithms.fed_avg.federated_averaging(
    jax.grad(loss),
    fedjax.optimizers.sgd(given.rate),
    fedjax.optimizers.sgd(1.0),
    fedjax.ShuffleRepeatBatchHParams(batch_size=given.batch, num_epochs=given.epochs),
)
state = algorithm.init(params)
for cohort in given.cohorts:
    given.begin_round()
    keys = jax.random.split(jax.random.PRNGKey(0), len(cohort))
    clients = [(number, data[number], key) for number, key in zip(cohort, keys, strict=True)]
    state, _ = algorithm.apply(state, clients)
    jax.block_until_ready(state.params)
    given.end_round()
given.report(lambda x: jax.device_get(scores(state.params, x)), f"jax {jax.__version__}")
