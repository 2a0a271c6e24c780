import pytest
import torch

from splitsec.errors import ConfigError, MessageError
from splitsec.settings.compression import check_compression
from splitsec.training.compression import coders
from splitsec.training.compression.topk import Rows, SparseActivations, SparseGradients

ROWS = torch.tensor([4, 0, 7])


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_what_is_left_out_of_an_activation_comes_later() -> None:
    torch.manual_seed(0)
    sender, receiver = SparseActivations(0.1, 10), SparseActivations(0.1, 10)
    x = torch.randn(3, 40)
    first = sender.pack(x, ROWS)
    torch.testing.assert_close(receiver.unpack(first, (3, 40)), x.bfloat16().float())
    # The rows have changed since; one tenth of the change travels each time.
    y = torch.randn(3, 40)
    errors = []
    for _ in range(12):
        sent = sender.pack(y, ROWS)
        assert _bytes(sent) == 3 * 4 * 6 + 3 * 4
        errors.append(float((receiver.unpack(sent, (3, 40)) - y).norm()))
    assert errors[0] > 1
    assert errors[-1] < 0.02
    # Another row is not known yet.
    assert len(sender.pack(y[:1], torch.tensor([2]))) == 2


@pytest.mark.parametrize("feedback", [True, False])
def test_error_feedback_sums_to_the_whole_gradient(feedback: bool) -> None:
    """Without memory, the control, small entries never travel."""
    torch.manual_seed(0)
    sender, receiver = SparseGradients(0.25, 10), SparseGradients(0.25, 10)
    gradient = torch.randn(3, 2, 20)
    total = torch.zeros_like(gradient)
    for _ in range(60):
        if not feedback:
            sender = SparseGradients(0.25, 10)
        total += receiver.unpack(sender.pack(gradient, ROWS), gradient.shape)
    off = (total / 60 - gradient).abs().max()
    assert (off < 0.1) == feedback


def test_what_does_not_fit_is_refused() -> None:
    x = torch.randn(3, 8)
    coder = SparseActivations(0.5, 5)
    with pytest.raises(MessageError, match="as torch.float32, expected torch.bfloat16, torch.int32, torch.int32"):
        coder.unpack([x], (3, 8))
    with pytest.raises(MessageError, match="beyond the client's 5 samples"):
        coder.unpack([x.bfloat16(), torch.tensor([0, 1, 5], dtype=torch.int32)], (3, 8))
    rows = torch.tensor([0, 1, 2], dtype=torch.int32)
    with pytest.raises(MessageError, match="positions beyond"):
        coder.unpack([x[:, :2].bfloat16(), torch.full((3, 2), 8, dtype=torch.int32), rows], (3, 8))
    with pytest.raises(MessageError, match="9 values a row"):
        coder.unpack([torch.zeros(3, 9).bfloat16(), torch.zeros(3, 9, dtype=torch.int32), rows], (3, 8))
    with pytest.raises(MessageError, match="as torch.float32, expected torch.bfloat16, torch.int32"):
        SparseGradients(0.5, 5).unpack([x], (3, 8))
    with pytest.raises(MessageError, match=r"expected torch\.float16"):
        coders("float16", 5)[1].unpack([x], (3, 8))
    with pytest.raises(ConfigError, match="more than 4 GiB"):
        Rows(1 << 20).of(1 << 12)


@pytest.mark.parametrize("name", ["zip", "topk", "topk:0", "topk:2", "topk:x", "float8"])
def test_unknown_compressions(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"unknown compression '{name}'; choose one of: none, float16, bfloat16, topk:F"
    ):
        check_compression(name)
