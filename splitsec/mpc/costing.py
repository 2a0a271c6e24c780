"""What a program needs and costs, known before it runs."""

from __future__ import annotations

from dataclasses import dataclass

from splitsec.mpc.context import SERVER
from splitsec.mpc.plan import Plan, correction_count
from splitsec.mpc.program import Program
from splitsec.mpc.run import run_program
from splitsec.mpc.session import Cost, Planner


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

    `hops` is the longest chain of messages that each wait for the one before: so many half round trips it takes.
    """

    plan: Plan
    hops: int
    layers: tuple[LayerCost, ...]

    @property
    def total(self) -> Cost:
        """Rounds and bytes of the whole query, online."""
        return Cost(
            sum(layer.rounds for layer in self.layers),
            sum(layer.bytes_sent for layer in self.layers),
            sum(layer.bytes_received for layer in self.layers),
        )


def predict_cost(program: Program, rank: int) -> Prediction:
    """Run the program on zeros, alone, and record what it asks for."""
    planner = Planner(rank, program.precision, program.comparison)
    readings = [(0, 0, 0, 0)]

    def read(_step: int) -> None:
        cost = planner.cost
        readings.append((cost.rounds, cost.bytes_sent, cost.bytes_received, len(planner.plan)))

    run_program(program, planner, weights={} if rank == SERVER else None, on_step=read)
    read(0)
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
        for (name, op), before, after in zip(names, readings, readings[1:], strict=False)
    ]
    return Prediction(plan, planner.hops, tuple(layers))
