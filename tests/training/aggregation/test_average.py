"""The weighted mean: its value, its momentum, and uploads under new seeds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from splitsec import RunSettings
from splitsec.errors import MessageError, RandomnessError
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.training.aggregation.average import AverageAtClient, AverageAtServer
from splitsec.training.aggregation.base import Member, Seeds
from splitsec.training.aggregation.masking import OneTime
from splitsec.training.flat_state import Combinable
from splitsec.training.messages import Hello


class _Open:
    """A protection that changes nothing."""

    noisy = silent = False


def _settings(**options: Any) -> RunSettings:
    return RunSettings(**{"clients": ("a", "b"), "epochs": 1, **options})


def _hello(samples: int, parameters: int) -> Hello:
    return Hello(1, "", "1", (), "", parameters, 3, samples)


def _client(settings: RunSettings) -> tuple[AverageAtClient, torch.Tensor]:
    state = Combinable([nn.Linear(2, 1)])
    member = Member("a", settings, state, state.flat(), 0, _Open(), OneTime())  # type: ignore[arg-type]
    return AverageAtClient(member), state.flat()


def _combine(rule: AverageAtServer, values: dict[str, tuple[float, int]], *, parameters: int = 2) -> torch.Tensor:
    settings, none = _settings(), torch.zeros(3, dtype=torch.int64)
    vectors = {}
    for name, (value, samples) in values.items():
        client, flat = _client(settings)
        seeds = Seeds(fresh_seed())
        upload = client.upload(
            torch.full_like(flat, value),
            None,
            seeds,
            weight=samples,
            round_number=0,
            rounds=1,  # type: ignore[arg-type]
        )
        vectors[name] = upload["masked"][0]
        none = none + Stream(seeds.own, 0).ring((3,))
    members = {name: _hello(samples, parameters) for name, (_, samples) in values.items()}
    return rule.combine(vectors, none, members, learning_rate=0.1, expected=1.0)


def test_clients_count_as_many_times_as_they_have_samples() -> None:
    combined = _combine(AverageAtServer(_settings()), {"a": (1.0, 30), "b": (2.0, 10)})
    assert torch.allclose(combined, torch.full((3,), 1.25, dtype=torch.float64), atol=2**-16)


def test_momentum_moves_parameters_and_leaves_other_values() -> None:
    rule = AverageAtServer(_settings(server_momentum=0.5))
    for value in (0.0, 1.0, 1.0):
        combined = _combine(rule, {"a": (value, 1), "b": (value, 1)})
    # The second round moves by 1; the third by nothing and half of that. The third value is no parameter.
    assert torch.allclose(combined, torch.tensor([1.5, 1.5, 1.0], dtype=torch.float64), atol=1e-3)
    # A rule that goes on from its tensors is where it was.
    again = AverageAtServer(_settings(server_momentum=0.5))
    again.restore(rule.tensors())
    values = {"a": (1.0, 1), "b": (1.0, 1)}
    assert torch.allclose(_combine(again, values), _combine(rule, values), atol=1e-3)


def test_an_upload_is_one_vector_of_the_right_length() -> None:
    rule = AverageAtServer(_settings())
    vector = torch.zeros(3, dtype=torch.int64)
    assert rule.add_upload("a", [vector], length=3, round_number=0, rounds=1) is vector
    for uploads in ([], [vector, vector], [vector[:2]]):
        with pytest.raises(MessageError):
            rule.add_upload("a", uploads, length=3, round_number=0, rounds=1)


def test_under_new_seeds_the_same_values_have_another_mask() -> None:
    client, flat = _client(_settings())
    before, after = Seeds(fresh_seed()), Seeds(fresh_seed())
    (first,) = client.upload(flat, None, before, weight=4, round_number=2, rounds=3)["masked"]  # type: ignore[arg-type]
    assert client.renewed(before, after, 1) is None
    renewed = client.renewed(before, after, 2)
    assert renewed is not None
    (second,) = renewed["masked"]
    assert not torch.equal(first, second)
    assert torch.equal(first - Stream(before.own, 2).ring(flat.shape), second - Stream(after.own, 2).ring(flat.shape))


def test_control_a_mask_is_used_once() -> None:
    client, flat = _client(_settings())
    seeds = Seeds(fresh_seed())
    client.upload(flat, None, seeds, weight=4, round_number=2, rounds=3)  # type: ignore[arg-type]
    with pytest.raises(RandomnessError, match="the mask of round 3 has been used"):
        client.upload(flat + 1, None, seeds, weight=4, round_number=2, rounds=3)  # type: ignore[arg-type]
