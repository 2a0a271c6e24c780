"""What a program costs, predicted without running it."""

from __future__ import annotations

import torch
from support.encrypted_tail import run_tail
from torch import nn

from splitsec.mpc.context import CLIENT, SERVER
from splitsec.mpc.program.cost import StepMemory, predict_cost

torch.manual_seed(0)
TAIL = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))


def test_rounds_and_bytes_are_those_of_a_run() -> None:
    _, sessions, program = run_tail(TAIL, torch.zeros(3, 4))
    for rank in (SERVER, CLIENT):
        total, traffic = predict_cost(program, rank).total, sessions[rank].peer.traffic
        assert (total.bytes_sent, total.bytes_received) == (traffic.bytes_sent, traffic.bytes_received)


def test_what_one_party_sends_the_other_receives() -> None:
    _, _, program = run_tail(TAIL, torch.zeros(3, 4))
    server, client = predict_cost(program, SERVER).total, predict_cost(program, CLIENT).total
    assert (server.bytes_sent, server.bytes_received) == (client.bytes_received, client.bytes_sent)


def test_equal_steps_are_planned_once_and_cost_the_same() -> None:
    _, _, program = run_tail(TAIL, torch.zeros(3, 4))
    memory = StepMemory()
    first, second = predict_cost(program, CLIENT, memory), predict_cost(program, CLIENT, memory)
    assert first == second == predict_cost(program, CLIENT)
    assert [layer.op for layer in first.layers] == ["linear", "relu", "linear", "relu", "linear", "open"]
