"""The gated recurrent unit in numpy."""

from __future__ import annotations

import numpy as np

from fl_client.engines._numpy_call import Array, Backward, LayerCall


def sigmoid(x: Array) -> Array:
    """Return ``1 / (1 + exp(-x))`` without overflow."""
    # the exponent is never above 0, so it cannot overflow
    small = np.exp(-np.abs(x))
    top: Array = np.where(x >= 0, 1, small) / (1 + small)
    return top


def gru(call: LayerCall, x: Array, *, sequence: bool) -> tuple[Array, Backward]:
    """Return the last hidden state, or all of them, of [batch, time, features].

    Source: the equations of ``torch.nn.GRU``, after Cho et al., EMNLP 2014,
    https://arxiv.org/abs/1406.1078.
    """
    inner, outer = call.tensor("weight_hh_l0"), call.tensor("weight_ih_l0")
    hidden = inner.shape[1]
    gates, states, recalled = _forward(call, x)

    def backward(dy: Array) -> Array:
        # the gradients at the gates' inputs replace the gates
        total, shift = np.zeros_like(inner), np.zeros_like(call.tensor("bias_hh_l0"))
        dh = np.zeros_like(states[0]) if sequence else dy
        for time in reversed(range(len(gates))):
            if sequence:
                dh = dh + dy[:, time]
            gate, at_inner = gates[time], np.empty_like(gates[time])
            reset, update, fresh = np.split(gate, 3, 1)
            d_update = dh * (states[time] - fresh) * update * (1 - update)
            d_fresh = dh * (1 - update) * (1 - fresh * fresh)
            d_reset = d_fresh * recalled[time] * reset * (1 - reset)
            at_inner[:, :hidden] = d_reset
            at_inner[:, hidden : 2 * hidden] = d_update
            at_inner[:, 2 * hidden :] = d_fresh * reset
            dh = dh * update + at_inner @ inner
            total += at_inner.T @ states[time]
            shift += at_inner.sum(0)
            reset[...], update[...], fresh[...] = d_reset, d_update, d_fresh
        call.store_gradient("weight_hh_l0", total)
        call.store_gradient("bias_hh_l0", shift)
        flat = gates.reshape(-1, 3 * hidden)
        by_time = x.transpose(1, 0, 2).reshape(-1, x.shape[2])
        call.store_gradient("weight_ih_l0", flat.T @ by_time)
        call.store_gradient("bias_ih_l0", flat.sum(0))
        return dy if call.first else (gates @ outer).transpose(1, 0, 2)

    if sequence:
        return states[1:].transpose(1, 0, 2), backward
    return states[-1], backward


def _forward(call: LayerCall, x: Array) -> tuple[Array, Array, Array]:
    """Return the gates and, one longer, the states of every step, and what the reset gate scales.

    Shapes: each has the time first; gates [time, batch, 3 hidden].
    """
    inner, bias = call.tensor("weight_hh_l0"), call.tensor("bias_hh_l0")
    hidden = inner.shape[1]
    # time first, so that a step's values are contiguous; the gates replace their inputs
    gates = np.ascontiguousarray(x.transpose(1, 0, 2)) @ call.tensor("weight_ih_l0").T
    gates += call.tensor("bias_ih_l0")
    states = np.zeros((len(gates) + 1, len(x), hidden), x.dtype)
    recalled = np.empty((len(gates), len(x), hidden), x.dtype)
    for time, gate in enumerate(gates):
        before = states[time] @ inner.T
        before += bias
        gate[:, : 2 * hidden] += before[:, : 2 * hidden]
        gate[:, : 2 * hidden] = sigmoid(gate[:, : 2 * hidden])
        reset, update, fresh = np.split(gate, 3, 1)
        recalled[time] = before[:, 2 * hidden :]
        fresh += reset * recalled[time]
        np.tanh(fresh, out=fresh)
        states[time + 1] = fresh + update * (states[time] - fresh)
    return gates, states, recalled
