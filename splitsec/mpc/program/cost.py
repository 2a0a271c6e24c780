"""What a program needs and costs, known before it runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch

from splitsec.mpc.context import CLIENT
from splitsec.mpc.correlation import Correlation, Plan
from splitsec.mpc.program.execute import check_ranges, run_step
from splitsec.mpc.program.operations import Value, value_scales
from splitsec.mpc.program.program import Program, Shape, Step
from splitsec.mpc.protocols.linear import LinearMask
from splitsec.mpc.session.plan import correction_count
from splitsec.mpc.session.session import Cost, Planner, Sent


@dataclass(frozen=True)
class LayerCost:
    """Exact cost of one step at one party, online; `elements_offline` are ring elements that the dealer sends."""

    name: str
    op: str
    rounds: int
    bytes_sent: int
    bytes_received: int
    elements_offline: int


@dataclass(frozen=True)
class Prediction:
    """What one query takes and costs at one party; after the layers come the opening of the result and any checks.

    `hops` is the longest chain of messages that each wait for the one before: the number of half round trips.
    """

    plan: Plan
    hops: int
    layers: tuple[LayerCost, ...]

    @property
    def total(self) -> Cost:
        """Return rounds and bytes of the whole query, online."""
        return Cost(
            sum(layer.rounds for layer in self.layers),
            sum(layer.bytes_sent for layer in self.layers),
            sum(layer.bytes_received for layer in self.layers),
        )


class StepMemory:
    """What steps did when they were planned: equal steps of one network, or of its tails, need not run again."""

    def __init__(self) -> None:
        self._traces: dict[tuple[object, ...], list[Correlation | Sent]] = {}

    def plan(self, planner: Planner, number: int, step: Step, inputs: Sequence[tuple[Shape, int]]) -> None:
        """Let the planner do a step whose inputs have these shapes and scales."""
        key = (planner.rank, planner.precision, planner.comparison, _nameless(step), tuple(inputs))
        if key not in self._traces:
            began = len(planner.trace)
            values = [Value(torch.zeros(shape, dtype=torch.int64), scale) for shape, scale in inputs]
            run_step(number, step, values, None, planner)
            self._traces[key] = planner.trace[began:]
            return
        planner.replay([_renumbered(event, number) for event in self._traces[key]])


def _nameless(step: Step) -> Step:
    return msgspec.structs.replace(step, name="", inputs=())


def _renumbered(event: Correlation | Sent, number: int) -> Correlation | Sent:
    return msgspec.structs.replace(event, layer=number) if isinstance(event, LinearMask) else event


def predict_cost(program: Program, rank: int, memory: StepMemory | None = None) -> Prediction:
    """Plan the program on zeros, alone, and record what it asks for.

    Args:
        memory: of earlier programs.
    """
    planner = Planner(rank, program.precision, program.comparison)
    memory = memory or StepMemory()
    scales = value_scales(program.steps, program.precision)
    shapes = [program.input_shape, *(step.shape for step in program.steps)]
    readings = [(0, 0, 0, 0)]

    def read() -> None:
        cost = planner.cost
        readings.append((cost.rounds, cost.bytes_sent, cost.bytes_received, len(planner.plan)))

    for number, step in enumerate(program.steps, 1):
        memory.plan(planner, number, step, [(shapes[index], scales[index]) for index in step.inputs])
        read()
    planner.collect(torch.zeros(shapes[-1], dtype=torch.int64), CLIENT)
    read()
    if program.checks:
        values = [
            Value(torch.zeros(shape, dtype=torch.int64), scale) for shape, scale in zip(shapes, scales, strict=True)
        ]
        check_ranges(program, values, planner)
        read()
    plan = planner.plan
    names = [(step.name, step.op) for step in program.steps] + [("result", "open")]
    names += [("checks", "check")] if program.checks else []
    layers = [
        LayerCost(
            name,
            op,
            rounds=after[0] - before[0],
            bytes_sent=after[1] - before[1],
            bytes_received=after[2] - before[2],
            elements_offline=correction_count(plan[before[3] : after[3]]),
        )
        for (name, op), (before, after) in zip(names, itertools.pairwise(readings), strict=True)
    ]
    return Prediction(plan, planner.hops, tuple(layers))
