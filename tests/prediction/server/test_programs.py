"""What a server keeps of the shapes that it was asked for."""

import math

import pytest
import torch
from torch import nn

from splitsec import SplitModel
from splitsec.errors import RangeError
from splitsec.mpc.ring import decode
from splitsec.prediction.server.programs import ProgramKey, Programs, tensor_digest
from splitsec.prediction.server.worker_pool import STORED_BYTES, WorkerPool


def _tail(seed: int = 0) -> SplitModel:
    torch.manual_seed(seed)
    return SplitModel(nn.Sequential(nn.Identity(), nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)), "0").eval()


def _wanted(rows: int) -> ProgramKey:
    return ProgramKey((rows, 8), "logits", checked=False, comparison="tables")


def test_weights_are_in_memory_once_whatever_shapes_are_asked_for() -> None:
    programs = Programs(_tail().tail)
    first = programs.get(_wanted(1))
    once = programs.weights_bytes
    assert once == 8 * (8 * 64 + 64 + 64 * 3 + 3)
    for rows in range(2, 14):
        compiled = programs.get(_wanted(rows))
        assert compiled.program.input_shape == (rows, 8)
        assert compiled.digests == first.digests
    label = programs.get(ProgramKey((1, 8), "label", checked=True, comparison="dcf"))
    assert label.program.reveals_label
    assert programs.weights_bytes == once
    assert programs.get(_wanted(1)) is first


def test_control_other_weights_are_not_taken_for_these() -> None:
    one, other = Programs(_tail(0).tail).get(_wanted(1)), Programs(_tail(1).tail).get(_wanted(1))
    assert not set(one.digests) & set(other.digests)
    split = _tail(0)
    weight = one.tensors[one.digests[0]]
    torch.testing.assert_close(decode(weight), split.tail.get_parameter("1.weight"), atol=1e-4, rtol=0)
    # The same bytes in another shape are another tensor.
    assert tensor_digest(torch.zeros(2, 3)) != tensor_digest(torch.zeros(3, 2))


def test_no_more_programs_are_kept_than_allowed() -> None:
    programs = Programs(_tail().tail, most=3)
    first = programs.get(_wanted(1))
    for rows in (2, 3):
        programs.get(_wanted(rows))
    assert programs.get(_wanted(1)) is first
    programs.get(_wanted(4))
    assert programs.get(_wanted(1)) is first
    assert len(programs._compiled) == 3
    assert _wanted(2) not in programs._compiled


def test_weights_go_to_the_forker_once_and_make_room() -> None:
    pool = WorkerPool.__new__(WorkerPool)
    pool._stored = {}
    large = torch.empty(STORED_BYTES // 16, dtype=torch.int64, device="meta")
    assert pool._stock({"a": large, "b": large}) == (("a", "b"), ())
    assert pool._stock({"a": large, "b": large}) == ((), ())
    # b was used before a, so that b makes room; what the session needs stays, however large.
    assert pool._stock({"b": large, "a": large}) == ((), ())
    assert pool._stock({"c": large}) == (("c",), ("b",))
    assert pool._stock({"a": large, "d": large, "e": large}) == (("d", "e"), ("c",))


@pytest.mark.parametrize("magnitude", [1e-12, 1.0, 255.0])
def test_no_calibration_of_a_client_opens_more_digits_of_the_weights(magnitude: float) -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(30) for layer in (nn.Linear(6, 6, bias=False), nn.ReLU())]
    net = nn.Sequential(nn.Identity(), *layers, nn.Linear(6, 3, bias=False))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain=1.3)
    programs = Programs(SplitModel(net, "0").tail.eval(), answer_bits=10)
    programs.calibrate("a", magnitude * torch.rand(4, 6))
    try:
        program = programs.get(ProgramKey((1, 6), "logits", checked=False, comparison="tables"), "a").program
    except RangeError:
        return
    with torch.no_grad():
        largest = net(program.limit * torch.rand(64, 6)).abs().max()
    # 10 bits where the largest activation is 256, so 18 bits of the largest result.
    assert program.answer_bits + math.log2(largest) <= 18 + math.log2(16)
