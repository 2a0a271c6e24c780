"""Multiply-adds, by formulas that a textbook has: torch's own counters differ between releases."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from splitsec.advisor.mac_count import counting_macs


def _macs(compute: Callable[..., object], *values: torch.Tensor) -> int:
    with torch.no_grad(), counting_macs() as counter:
        compute(*values)
    return counter.total()


def _attention_by_hand(x: torch.Tensor) -> torch.Tensor:
    return (x @ x.transpose(-1, -2)).softmax(-1) @ x


def test_fused_attention_counts_as_its_products_do() -> None:
    x = torch.randn(1, 2, 5, 4)
    by_hand = _macs(_attention_by_hand, x)
    assert by_hand == 2 * 2 * 5 * 5 * 4
    assert _macs(lambda x: F.scaled_dot_product_attention(x, x, x, scale=1.0), x) == by_hand
    heads = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(1, 5, 8)
    # Four projections, and the two products of each head.
    assert _macs(lambda x: heads(x, x, x, need_weights=False), x) == 5 * 4 * 8 * 8 + 2 * 5 * 5 * 8
    assert _macs(lambda x: heads(x, x, x, need_weights=True), x) == 5 * 4 * 8 * 8 + 2 * 5 * 5 * 8


@pytest.mark.parametrize(
    ("compute", "shape", "macs"),
    [
        pytest.param(nn.Linear(3, 4), (2, 3), 24, id="linear"),
        pytest.param(nn.Linear(3, 4, bias=False), (3,), 12, id="linear of a vector"),
        pytest.param(nn.Conv2d(4, 4, 3, groups=4, padding=1), (1, 4, 6, 6), 36 * 4 * 9, id="depthwise"),
        pytest.param(nn.ConvTranspose2d(3, 4, 3), (1, 3, 6, 6), 36 * 9 * 12, id="transposed"),
        pytest.param(nn.LSTM(8, 6, batch_first=True), (1, 5, 8), 5 * 4 * 6 * (8 + 6), id="lstm"),
        pytest.param(nn.GRU(8, 6, batch_first=True), (1, 5, 8), 5 * 3 * 6 * (8 + 6), id="gru"),
        pytest.param(lambda x: x @ torch.ones(3), (2, 3), 6, id="by a vector"),
        pytest.param(lambda x: x @ x, (3,), 3, id="of vectors"),
        pytest.param(lambda x: torch.addmv(torch.ones(2), x, torch.ones(3)), (2, 3), 6, id="addmv"),
        pytest.param(lambda x: torch.addbmm(torch.ones(3, 3), x, x), (2, 3, 3), 54, id="addbmm"),
        pytest.param(lambda x: nn.Bilinear(3, 3, 5)(x, x), (2, 3), 2 * 5 * 3 * 3, id="bilinear"),
        pytest.param(lambda x: torch.einsum("bi,ij->bj", x, torch.ones(3, 4)), (2, 3), 24, id="einsum"),
    ],
)
def test_every_product_is_counted(compute: Callable[..., object], shape: tuple[int, ...], macs: int) -> None:
    assert _macs(compute, torch.randn(shape)) == macs


def test_switches_of_torch_stand_as_before() -> None:
    def switches() -> tuple[bool, ...]:
        kernels = torch.backends.cuda
        return (
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.mkldnn.enabled,
            kernels.flash_sdp_enabled(),
            kernels.mem_efficient_sdp_enabled(),
        )

    before = switches()
    with counting_macs():
        assert switches() != before
    with pytest.raises(ValueError, match="broke"), counting_macs():
        raise ValueError("broke")
    assert switches() == before
