"""How exact functions of one number are on shares, and what they cost: splitsec's protocols beside CrypTen's.

Both run in this process on the same inputs, over a socket pair with a dealer. The error is the largest difference from
torch, relative to results above 1; rounds and bytes are exact counts of the client, online.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.table import Table
from torch import nn

from benchmarks.command import console, run_command
from benchmarks.records import write_result
from splitsec.cli.common import check_writable
from splitsec.cut import trace
from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.crypten_session import run_crypten
from splitsec.mpc.in_process import run_pair
from splitsec.mpc.program.compile import compile_tail
from splitsec.mpc.program.execute import run_program
from splitsec.mpc.session.session import Cost
from splitsec.settings.setting import setting

AROUND, ABOVE = torch.linspace(-6, 6, 121), torch.logspace(-2, 2, 200)
# torch's function, the name of CrypTen's method, and inputs.
FUNCTIONS: Mapping[str, tuple[Callable[[torch.Tensor], torch.Tensor], str, torch.Tensor]] = {
    "exp": (torch.exp, "exp", AROUND),
    "log": (torch.log, "log", ABOVE),
    "reciprocal": (torch.reciprocal, "reciprocal", ABOVE),
    "sqrt": (torch.sqrt, "sqrt", ABOVE),
    "rsqrt": (torch.rsqrt, "inv_sqrt", ABOVE),
    "sin": (torch.sin, "sin", AROUND),
    "cos": (torch.cos, "cos", AROUND),
    "erf": (torch.erf, "erf", AROUND),
    "sigmoid": (torch.sigmoid, "sigmoid", AROUND),
    "tanh": (torch.tanh, "tanh", AROUND),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    json: Annotated[Path | None, setting("Also write the records to this file.")] = None


@dataclass(frozen=True)
class FunctionRecord:
    """One function by one engine: the largest error, and what the client's online phase costs."""

    function: str
    engine: str
    error: float
    rounds: int
    bytes_online: int


class _Layer(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def by_splitsec(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, Cost]:
    """Return a function's values (n,) on shares by our protocols, and the client's cost."""
    rows = x[None]
    program, _ = compile_tail(trace(_Layer(function)), tuple(rows.shape), calibration=rows)

    def protocol(context: Context, _query: int) -> torch.Tensor | None:
        return run_program(program, context, activation=rows if context.rank == CLIENT else None, weights={})

    outcome = run_pair(protocol)
    return outcome.client[0][0], outcome.cost


def by_crypten(method: str, x: torch.Tensor) -> tuple[torch.Tensor, Cost]:
    """Return the values (n,) of a method of CrypTen's tensors, and the client's cost."""

    def program(crypten: Any, rank: int, own: Any) -> Any:
        shared = crypten.cryptensor(own if rank == CLIENT else torch.zeros_like(x), src=CLIENT)
        return getattr(shared, method)().get_plain_text(dst=CLIENT)

    outcome = run_crypten(program, client=x)
    return outcome.client[0], outcome.cost


def measure() -> list[FunctionRecord]:
    """Run every function by both engines."""
    records = []
    for name, (function, method, x) in FUNCTIONS.items():
        expected = function(x)
        for engine, (values, cost) in (
            ("splitsec", by_splitsec(function, x)),
            ("crypten", by_crypten(method, x)),
        ):
            error = ((values - expected).abs() / expected.abs().clamp(min=1)).max().item()
            records.append(FunctionRecord(name, engine, error, cost.rounds, cost.bytes_sent + cost.bytes_received))
    return records


def main(options: Options, arguments: Sequence[str]) -> None:
    """Measure and print."""
    check_writable(options.json)
    records = measure()
    table = Table(title="functions on shares: error relative to results above 1, rounds and bytes online")
    for heading in ("function", "engine", "error", "rounds", "kB"):
        table.add_column(heading, justify="left" if heading in ("function", "engine") else "right")
    for record in records:
        row = (f"{record.error:.1e}", str(record.rounds), f"{record.bytes_online / 1e3:.0f}")
        table.add_row(record.function, record.engine, *row)
    console().print(table)
    write_result(options.json, records, benchmark="functions", arguments=arguments)


if __name__ == "__main__":
    run_command(main, Options, name="functions", description="Functions of one number on shares, beside CrypTen's.")
