import pytest
import torch
from support.two_party import run_both, share

from splitsec.errors import MessageError, PartyTimeoutError, RandomnessError
from splitsec.mpc.beaver import SquarePair
from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.protocols.truncate import truncate


def test_randomness_serves_once() -> None:
    def protocol(context: Context) -> torch.Tensor:
        return truncate(context, share(context, torch.ones(4, dtype=torch.int64)), 2)

    _, (server, _) = run_both(protocol)
    with pytest.raises(RandomnessError, match="query 0 was used before"):
        server.begin(0)
    with pytest.raises(RandomnessError, match="query 7 was never prepared"):
        server.begin(7)


def test_taking_more_or_less_or_other_than_planned_is_an_error() -> None:
    asked: list[int] = []

    def protocol(context: Context) -> None:
        asked.append(1)
        planning = len(asked) == 1
        context.take(SquarePair((2,) if planning else (3,)))

    with pytest.raises(RandomnessError, match=r"the plan has .* the program wants"):
        run_both(protocol)

    def takes_less(context: Context) -> None:
        asked.append(1)
        if len(asked) == 4:
            context.take(SquarePair((2,)))

    asked[:] = [1, 1, 1]
    with pytest.raises(RandomnessError, match="not used"):
        run_both(takes_less)


def test_the_two_parties_must_be_at_the_same_step() -> None:
    def protocol(context: Context) -> None:
        context.exchange([torch.zeros(2 + context.rank, dtype=torch.int64)])

    with pytest.raises(
        MessageError, match=r"sent 24 bytes for step 0; expected 32|sent 32 bytes for step 0; expected 24"
    ):
        run_both(protocol)


def test_a_silent_peer_is_named_in_time() -> None:
    def protocol(context: Context) -> None:
        if context.rank == SERVER:
            context.exchange([torch.zeros(1, dtype=torch.int64)])

    with pytest.raises(PartyTimeoutError, match="the other party fell silent for 0.5 s"):
        run_both(protocol, timeout=0.5)


def test_two_sessions_never_share_masks() -> None:
    values = torch.zeros(200, dtype=torch.int64)
    seen = []
    for _ in range(2):
        _, (server, client) = run_both(lambda context: truncate(context, share(context, values), 4))
        seen += [server.received[0], client.received[0]]
    for one in range(4):
        for other in range(one):
            assert not (seen[one] == seen[other]).any()
