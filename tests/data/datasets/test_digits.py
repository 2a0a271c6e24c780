import torch

from splitsec.data.datasets import load_dataset


def test_digits_are_checked_rows_of_which_the_seed_holds_some_out() -> None:
    whole, again, other = (load_dataset("digits", None, seed) for seed in (0, 0, 1))
    whole.check()
    assert (whole.train_images.shape, whole.test_images.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (float(whole.train_images.min()), float(whole.train_images.max())) == (0.0, 1.0)
    assert torch.equal(whole.test_images, again.test_images)
    assert not torch.equal(whole.test_images, other.test_images)
