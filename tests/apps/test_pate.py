"""The parts of the PATE demonstration that look at no private row."""

from __future__ import annotations

import torch

from splitsec.apps.pate import DATA, _shifted, _typical

GENERATOR = torch.Generator().manual_seed(0)
POINTS = torch.cat([torch.randn(20, 1, 2, 2, generator=GENERATOR) * 0.1 + 5 * place for place in range(3)])


def test_each_cluster_gives_one_typical_row() -> None:
    chosen = _typical(POINTS, 3, seed=0)
    assert sorted((chosen // 20).tolist()) == [0, 1, 2]
    assert len(set(_typical(POINTS, 6, seed=0).tolist())) == 6


def test_images_are_moved_and_never_cut_down() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 1, 8, 8)
    assert _shifted(images, 0) is images
    moved = {tuple(_shifted(images, 1).flatten().tolist()) for _ in range(20)}
    assert len(moved) > 1
    assert _shifted(images, 2).shape == images.shape


def test_datasets_say_how_much_noise_votes_have() -> None:
    for data in DATA.values():
        assert min(data.threshold_noise, data.vote_noise) > 0
        assert 0 < data.threshold < 1
