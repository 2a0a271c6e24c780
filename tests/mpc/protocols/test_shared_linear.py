"""Layers whose weights no party of a session knows."""

import threading
from typing import Any

import msgspec
import pytest
import torch
from scipy import stats
from torch import nn

from splitsec.cut import INPUT, SplitModel
from splitsec.errors import MessageError, RandomnessError
from splitsec.mpc.dealer import DealerBook, OwnerBook
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.program.compile import compile_tail, encode_weights
from splitsec.mpc.program.program import Program, Weights
from splitsec.mpc.protocols import shared_linear as shared
from splitsec.mpc.protocols.shared_linear import (
    SharedWeight,
    client_shares,
    give,
    mask_of,
    merge_programs,
    server_shares,
    shared_weights,
)


def _compiled(model: nn.Module, shape: tuple[int, ...]) -> tuple[Program, dict[int, Weights]]:
    program, weights = compile_tail(SplitModel(model, INPUT).tail, shape)
    return program, encode_weights(program, weights)


def _linear() -> tuple[Program, dict[int, Weights]]:
    torch.manual_seed(0)
    return _compiled(nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5)), (2, 40))


def _uniform(tensors: list[torch.Tensor]) -> bool:
    data = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]).long()
    return bool(stats.chisquare(torch.bincount(data, minlength=256).numpy()).pvalue > 1e-6)


@pytest.mark.parametrize("masked", [True, False])
def test_what_the_server_gets_is_uniform(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control is the same without masks."""

    class Zero(Stream):
        def ring(self, shape: Any) -> torch.Tensor:
            return torch.zeros(tuple(shape), dtype=torch.int64)

    if not masked:
        monkeypatch.setattr(shared, "Stream", Zero)
    _, tensors = give(*_linear(), token="t", seed=fresh_seed())
    assert _uniform(tensors) == masked


def test_shares_add_up_to_the_masks_and_are_uniform() -> None:
    program, _ = give(*_linear(), token="t", seed=fresh_seed())
    items = shared_weights(program)
    assert [item.number for item in items] == [1, 3]
    owner, client = fresh_seed(), fresh_seed()
    mine = server_shares(lambda _token: owner, client, items)
    theirs = client_shares(client, items)
    for index, item in enumerate(items):
        whole = mask_of(owner, item)
        assert torch.equal(mine[2 * index] + theirs[item.number].weight, whole.weight)
        assert torch.equal(mine[2 * index + 1] + theirs[item.number].bias, whole.bias)
    assert _uniform(mine)
    assert _uniform([part for one in theirs.values() for part in (one.weight, one.bias)])


def test_programs_are_merged_to_the_mean() -> None:
    one, two = _linear()[0], _linear()[0]
    merged = merge_programs([one, two])
    assert len(merged.steps) == len(one.steps) + len(two.steps) + 2
    assert merged.output_shape == one.output_shape
    assert merged.steps[3].inputs == (0,)
    assert merged.steps[4].inputs == (4,)
    assert merged.steps[-2].inputs == (3, 6)
    other = _compiled(nn.Linear(40, 4), (2, 40))[0]
    with pytest.raises(MessageError, match=r"the parts of the model differ: output shape \(2, 5\) and \(2, 4\)"):
        merge_programs([one, other])
    with pytest.raises(MessageError, match="input shape"):
        merge_programs([one, msgspec.structs.replace(one, input_shape=(3, 40))])


def test_the_dealer_gives_shares_once_and_to_the_server_alone() -> None:
    owners = OwnerBook()
    book = DealerBook(owners)
    token, _ = owners.new()
    item = SharedWeight(1, token, 1, (3, 2), (3,))
    for rank, name in ((0, "server"), (1, "c")):
        with pytest.raises(RandomnessError, match="gets no shares" if rank == 0 else "has not joined"):
            book.weight_shares("s", [item], name="server")
        book.join("s", rank=rank, name=name, server="server", client="c", plan=())
    with pytest.raises(RandomnessError, match="c gets no shares"):
        book.weight_shares("s", [item], name="c")
    with pytest.raises(MessageError, match="impossible shape"):
        book.weight_shares("s", [SharedWeight(1, token, 1, (0,), (3,))], name="server")
    assert [tuple(one.shape) for one in book.weight_shares("s", [item], name="server")] == [(3, 2), (3,)]
    with pytest.raises(RandomnessError, match="gets no shares"):
        book.weight_shares("s", [item], name="server")
    with pytest.raises(RandomnessError, match="no seed for these weights"):
        owners.seed("unknown")
    for _ in range(300):
        owners.new()
    with pytest.raises(RandomnessError, match="must give them again"):
        owners.seed(token)
    assert threading.active_count() >= 1
