"""What a party's TOML file may say.

`threads` is how many torch may use; `cpu` puts the whole process on one processor, which keeps a party's thread and
ZeroMQ's together and cuts the waiting where several parties share a machine (docs/reference/performance.md). The
server's prediction sessions then take processors of their own, from that one on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from splitsec.settings.answers import AnswerRules
from splitsec.settings.query import Query
from splitsec.settings.run import MOST_SEED, RunSettings
from splitsec.settings.setting import Bounds, setting
from splitsec.settings.timeouts import Timeouts, Waiting

# Batch sizes that a part of a model is compiled for.
BATCHES = (1, 32)
MOST_THREADS = 1024
PartyLayout: TypeAlias = Literal["vertical", "model_parts"]
_ADDRESS = "Address to listen on."
_DEALER = "Address of the dealer."


@dataclass(frozen=True, kw_only=True)
class Process:
    """What every party's process needs."""

    keys: Annotated[str, setting("Directory with this party's key pair and the others' public keys.")] = "keys"
    checkpoints: (
        Annotated[str, setting("Directory of checkpoints: a run that was killed goes on when it is started again.")]
        | None
    ) = None
    threads: Annotated[int, setting("Threads of torch.", Bounds(least=1, most=MOST_THREADS))] = 1
    cpu: Annotated[int, setting("Processor for the whole process; any if it is left out.", Bounds(least=0))] | None = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class DealerConfig(Process):
    """Settings of `splitsec dealer`."""

    address: Annotated[str, setting(_ADDRESS, example='"tcp://0.0.0.0:5556"')]
    minimum_clients: Annotated[int, setting("Fewest clients whose masks are opened in a sum.", Bounds(least=2))] = 2


@dataclass(frozen=True, kw_only=True)
class ServerConfig(RunSettings, AnswerRules, Timeouts, Process):
    """Settings of `splitsec server`: those of the run, which it tells the clients, and its own.

    Vertical runs and model parts have no cut, and model parts no model at the server.
    """

    address: Annotated[str, setting(_ADDRESS, example='"tcp://0.0.0.0:5555"')]
    dealer: Annotated[str, setting(_DEALER, example='"tcp://dealer.example:5556"')]
    model: Annotated[str, setting("The model: module:function or file.py:function.", example='"net.py:Net"')] = ""
    cut: Annotated[str, setting("Name of the cut; two names, as in a,b, make a U.")] = ""
    seed: (
        Annotated[
            int,
            setting(
                "Seed of the tail's first weights, for a run that can be repeated: whoever knows it knows them.",
                Bounds(least=0, most=MOST_SEED),
            ),
        ]
        | None
    ) = None
    weights: Annotated[str, setting("File of weights to begin with.")] | None = None
    calibration: (
        Annotated[
            str,
            setting(
                "safetensors file with `activations` (N, ...) of no client, on which a deep tail's ranges are measured."
            ),
        ]
        | None
    ) = None
    out: Annotated[str, setting("Directory for the trained tail.")] | None = None


@dataclass(frozen=True, kw_only=True)
class ClientConfig(Query, Waiting, Process):
    """Settings of `splitsec client`; those of the run come from the server.

    With `vertical`, `data` holds columns and the model is a `VerticalModel`; with `model_parts` the model is this
    client's part, trained for `epochs` with `train_batch_size` and `learning_rate`. Neither has a cut.
    """

    name: Annotated[str, setting("The client's name, as the server has it.", example='"ward-a"')]
    server: Annotated[str, setting("Address of the server.", example='"tcp://server.example:5555"')]
    dealer: Annotated[str, setting(_DEALER, example='"tcp://dealer.example:5556"')]
    model: Annotated[str, setting("The model: module:function or file.py:function.", example='"net.py:Net"')]
    data: Annotated[str, setting("The client's data, a safetensors file.", example='"part.safetensors"')]
    cut: Annotated[str, setting("Name of the cut; two names, as in a,b, make a U.")] = ""
    layout: (
        Annotated[
            PartyLayout,
            setting(
                "For clients that hold columns (vertical) or train a part alone (model_parts); others leave it out."
            ),
        ]
        | None
    ) = None
    seed: Annotated[
        int,
        setting("The same at all clients, since their first weights come from it.", Bounds(least=0, most=MOST_SEED)),
    ] = 0
    weights: (
        Annotated[str, setting("File of weights to begin with; a front of columns brings mean and spread with it.")]
        | None
    ) = None
    predictions: (
        Annotated[int, setting("Held-out rows to predict encrypted; all if it is left out.", Bounds(least=0))] | None
    ) = None
    epochs: Annotated[int, setting("Model parts: epochs of the client's own training.", Bounds(least=0))] = 30
    train_batch_size: Annotated[int, setting("Model parts: rows of a step.", Bounds(least=1), unit="rows")] = 16
    learning_rate: Annotated[float, setting("Model parts: learning rate of Adam.", Bounds(above=0))] = 2e-3
    out: Annotated[str, setting("Directory for the front and the predictions.")] | None = None
    ledgers: (
        Annotated[str, setting("Directory for the ledger of a run with a privacy budget; `out` if it is left out.")]
        | None
    ) = None
    epsilon_limit: Annotated[
        float,
        setting("What all runs with a ledger there may spend together of any record; 0 for no limit.", Bounds(least=0)),
    ] = 0.0
    train: Annotated[bool, setting("Take part in training; false for predictions alone.")] = True
    repeatable: Annotated[
        bool,
        setting(
            "Leave each run's fresh secret out of the order of rows and of dropout: for tests alone, since who sees "
            "two such runs, with this client and without it, has this client's update."
        ),
    ] = False
    ask: (
        Annotated[
            bool,
            setting("Vertical: ask for the predictions; if it is left out, the client whose data has labels does."),
        ]
        | None
    ) = None
    standardise: Annotated[
        bool, setting("Vertical: give each column mean 0 and spread 1 over the rows for training.")
    ] = True
    codes: Annotated[
        tuple[str, ...], setting("Vertical: columns that the front looks up in an embedding, left as they are.")
    ] = ()
    activation_clip: Annotated[
        float,
        setting("Without training: clip of the run in which the front was trained; 0 for none.", Bounds(least=0)),
    ] = 0.0
