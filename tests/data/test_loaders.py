import torch

from splitsec.data.loaders import Loader, PoissonLoader


def test_batches_cover_the_part_once_an_epoch_in_a_new_order() -> None:
    inputs = torch.arange(10.0)[:, None]
    loader = Loader(inputs, torch.arange(10), batch_size=4, seed=3)
    assert loader.per_epoch == 3
    first, second = ([loader.batch(3 * epoch + step)[1] for step in range(3)] for epoch in range(2))
    assert [len(labels) for labels in first] == [4, 4, 2]
    assert sorted(torch.cat(first).tolist()) == list(range(10))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    # A batch is the same whenever it is asked for, and its three parts belong together.
    images, labels, rows = Loader(inputs, torch.arange(10), batch_size=4, seed=3).batch(4)
    assert torch.equal(labels, second[1])
    assert torch.equal(images[:, 0].long(), labels)
    assert torch.equal(rows, labels)


def test_a_last_batch_of_a_single_row_is_left_out_and_never_twice_the_same() -> None:
    loader = Loader(torch.arange(9.0)[:, None], None, batch_size=4, seed=0)
    assert loader.per_epoch == 2
    left_out = [
        set(range(9)) - set(torch.cat([loader.rows(2 * epoch + step) for step in (0, 1)]).tolist())
        for epoch in range(20)
    ]
    assert all(len(rows) == 1 for rows in left_out)
    assert len(set.union(*left_out)) > 3
    # The control: two rows are a batch.
    assert Loader(torch.zeros(10, 1), None, batch_size=4, seed=0).per_epoch == 3


def test_a_secret_order_is_a_shuffle_that_only_its_seed_gives() -> None:
    def order(seed: bytes, epoch: int) -> list[int]:
        return Loader(torch.zeros(50, 1), None, batch_size=50, seed=seed).rows(epoch).tolist()

    first = order(b"1" * 16, 0)
    assert sorted(first) == list(range(50))
    assert order(b"1" * 16, 0) == first
    assert order(b"2" * 16, 0) != first
    assert order(b"1" * 16, 1) != first


def test_each_row_is_in_each_batch_with_the_rate_independently_of_the_others() -> None:
    loader = PoissonLoader(torch.zeros(200, 1), None, rate=0.1, per_epoch=10, seed=b"3" * 16)
    batches = [set(loader.rows(index).tolist()) for index in range(1000)]
    sizes = torch.tensor([float(len(rows)) for rows in batches])
    # 200,000 draws: the mean is 20 within 6 standard errors, and the variance is that of independent draws.
    assert abs(sizes.mean().item() - 20) < 6 * (200 * 0.1 * 0.9 / 1000) ** 0.5
    assert 0.8 < sizes.var().item() / 18 < 1.2
    both = sum({3, 4} <= rows for rows in batches)
    assert both < 40
    again = PoissonLoader(torch.zeros(200, 1), None, rate=0.1, per_epoch=10, seed=b"3" * 16)
    assert again.rows(7).tolist() == sorted(batches[7])
    other = PoissonLoader(torch.zeros(200, 1), None, rate=0.1, per_epoch=10, seed=b"4" * 16)
    assert set(other.rows(7).tolist()) != batches[7]
