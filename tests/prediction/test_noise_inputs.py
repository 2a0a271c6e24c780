"""Inputs of noise: the same at all parties, and as large as a trained model's inputs are."""

from __future__ import annotations

import torch

from splitsec.prediction.noise_inputs import noise_inputs


def test_equal_texts_give_equal_inputs_and_others_give_others() -> None:
    first, again, other = (
        noise_inputs(50, (4, 5), torch.float32, text, words=None) for text in ("a cut", "a cut", "b cut")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_real_inputs_have_mean_0_and_standard_deviation_1() -> None:
    values = noise_inputs(1000, (20,), torch.float64, "a cut", words=None)
    assert values.dtype == torch.float64
    assert values.shape == (1000, 20)
    assert abs(values.mean()) < 0.03
    assert abs(values.std() - 1) < 0.03


def test_inputs_that_are_looked_up_are_whole_numbers_below_the_table_s_rows() -> None:
    values = noise_inputs(1000, (3,), torch.int64, "a cut", words=7)
    assert values.dtype == torch.int64
    assert sorted(set(values.flatten().tolist())) == list(range(7))
