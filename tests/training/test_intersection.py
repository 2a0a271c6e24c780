"""Points of ids as tensors, and which of them all have."""

from __future__ import annotations

import torch

from splitsec.training.intersection import POINT_BYTES, common_places, packed, unpacked

POINTS = [bytes([number]) * POINT_BYTES for number in range(5)]


def test_points_are_the_same_after_the_way_there_and_back() -> None:
    tensor = packed(POINTS)
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.uint8, (5, POINT_BYTES))
    assert unpacked(tensor) == POINTS
    assert unpacked(packed([])) == []


def test_each_client_learns_which_of_its_own_all_have() -> None:
    places = common_places({"a": packed([POINTS[0], POINTS[3], POINTS[1]]), "b": packed([POINTS[1], POINTS[0]])})
    assert places["a"].tolist() == [0, 2]
    assert places["b"].tolist() == [0, 1]


def test_without_a_common_point_there_is_no_place() -> None:
    places = common_places({"a": packed(POINTS[:2]), "b": packed(POINTS[2:])})
    assert [place.tolist() for place in places.values()] == [[], []]
