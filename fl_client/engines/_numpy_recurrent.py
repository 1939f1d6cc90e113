"""The gated recurrent unit and the long short-term memory in numpy."""

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


def lstm(call: LayerCall, x: Array, *, sequence: bool) -> tuple[Array, Backward]:
    """Return the last hidden state, or all of them, of [batch, time, features].

    Source: the equations of ``torch.nn.LSTM``, after Hochreiter and Schmidhuber, Neural
    Computation 9(8), 1997.
    """
    inner, outer = call.tensor("weight_hh_l0"), call.tensor("weight_ih_l0")
    gates, states, cells = _lstm_forward(call, x)

    def backward(dy: Array) -> Array:
        # the gradients at the gates' inputs replace the gates
        total = np.zeros_like(inner)
        dh = np.zeros_like(states[0]) if sequence else dy
        dc = np.zeros_like(cells[0])
        for time in reversed(range(len(gates))):
            if sequence:
                dh = dh + dy[:, time]
            gate = gates[time]
            enter, forget, fresh, leave = np.split(gate, 4, 1)
            shown = np.tanh(cells[time + 1])
            d_leave = dh * shown * leave * (1 - leave)
            dc += dh * leave * (1 - shown * shown)
            d_enter = dc * fresh * enter * (1 - enter)
            d_fresh = dc * enter * (1 - fresh * fresh)
            d_forget = dc * cells[time] * forget * (1 - forget)
            dc *= forget
            enter[...], forget[...], fresh[...], leave[...] = d_enter, d_forget, d_fresh, d_leave
            dh = gate @ inner
            total += gate.T @ states[time]
        call.store_gradient("weight_hh_l0", total)
        flat = gates.reshape(-1, gates.shape[2])
        by_time = x.transpose(1, 0, 2).reshape(-1, x.shape[2])
        call.store_gradient("weight_ih_l0", flat.T @ by_time)
        for bias in ("bias_hh_l0", "bias_ih_l0"):
            call.store_gradient(bias, flat.sum(0))
        return dy if call.first else (gates @ outer).transpose(1, 0, 2)

    if sequence:
        return states[1:].transpose(1, 0, 2), backward
    return states[-1], backward


def _lstm_forward(call: LayerCall, x: Array) -> tuple[Array, Array, Array]:
    """Return the gates and, one longer, the hidden states and the cells of every step.

    Shapes: each has the time first; gates [time, batch, 4 hidden].
    """
    inner, bias = call.tensor("weight_hh_l0"), call.tensor("bias_hh_l0")
    hidden = inner.shape[1]
    gates = np.ascontiguousarray(x.transpose(1, 0, 2)) @ call.tensor("weight_ih_l0").T
    gates += call.tensor("bias_ih_l0")
    states = np.zeros((len(gates) + 1, len(x), hidden), x.dtype)
    cells = np.zeros_like(states)
    for time, gate in enumerate(gates):
        gate[...] += states[time] @ inner.T + bias
        gate[:, : 2 * hidden] = sigmoid(gate[:, : 2 * hidden])
        enter, forget, fresh, leave = np.split(gate, 4, 1)
        np.tanh(fresh, out=fresh)
        leave[...] = sigmoid(leave)
        cells[time + 1] = forget * cells[time] + enter * fresh
        states[time + 1] = leave * np.tanh(cells[time + 1])
    return gates, states, cells
