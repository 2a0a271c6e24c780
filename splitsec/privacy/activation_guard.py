"""What a client may do to the activations that cross the cut in plain training: clipping, noise, decorrelation.

None of the three is the guarantee of DP-SGD. Clipping alone promises nothing. Noise makes each activation that is sent
differentially private by itself, at the epsilon that `epsilon_of_activations` says; a row is sent again in every epoch,
its label goes along in plain, and at useful accuracies epsilon is far above what protects. NoPeek lowers a statistic.
What they are worth against a given attack is what `splitsec audit` measures.
"""

from __future__ import annotations

import torch
from torch import nn

from splitsec.errors import ConfigError
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.ring import check_range
from splitsec.privacy.accounting import epsilon_of
from splitsec.privacy.noise import discrete_gaussian, grid_step

# In float32.
LARGEST_EXACT = 2.0**24


def clip_rows(activation: torch.Tensor, limit: float) -> torch.Tensor:
    """Return each row scaled down to L2 norm `limit` if it is longer; differentiable."""
    norms = activation.flatten(1).norm(dim=1).clamp(min=1e-12)
    factors = (limit / norms).clamp(max=1.0)
    clipped: torch.Tensor = activation * factors.view(-1, *[1] * (activation.dim() - 1))
    return clipped


def guarded(activation: torch.Tensor, *, clip: float, noise: float, stream: Stream) -> torch.Tensor:
    """Return what crosses the cut in training: rows clipped, with noise of `noise` times the clip; differentiable.

    With noise, the values are multiples of a power of two: those of the clipped rows are rounded towards zero, so that
    no row becomes longer than `clip`, and the noise is a discrete Gaussian in units of that step. So no value's digits
    say what it was without the noise. All of them are exact in float32.

    Raises:
        RangeError: the activation is not finite, or too large for so little noise.
    """
    clipped = clip_rows(activation, clip)
    if not noise:
        return clipped
    step = activation_step(clip=clip, noise=noise)
    # In double precision, since a norm of float32 may be above the clip by its rounding.
    flat = activation.detach().flatten(1).double()
    factors = (clip * (1 - 1e-12) / flat.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1.0)
    units = (flat * factors / step).trunc()
    check_range(units, limit=float("inf"), what="the activation that noise is added to")
    drawn = discrete_gaussian(stream, units.numel(), noise * clip / step)
    released = (units.long() + drawn.view(units.shape)).double() * step
    # The last term is exactly zero, and carries the gradient.
    crossing: torch.Tensor = released.to(activation).view_as(activation) + (clipped - clipped.detach())
    return crossing


def activation_step(*, clip: float, noise: float) -> float:
    """Return the step of the grid that noisy activations lie on.

    It is fine beside the noise, and all values on it are exact in float32.

    Raises:
        ConfigError: there is too little noise for a grid that is fine beside it.
    """
    std = noise * clip
    for steps in (1 << 12, 1 << 8, 1 << 4):
        # The noise's tails never reach 2^7 standard deviations.
        if (clip / std + 128) * 2 * steps < LARGEST_EXACT:
            return grid_step(std, steps)
    raise ConfigError(f"no grid in float32 is fine beside noise of {noise:g} times the clip")


class Guard:
    """Clips a front's output, and in training adds noise to it; `remove` takes it off again.

    The clip stays for predictions: the tail has learned from clipped activations.

    Args:
        clip: L2 norm of a row.
        noise: standard deviation as a multiple of the clip.
    """

    def __init__(self, front: nn.Module, *, clip: float, noise: float = 0.0) -> None:
        self._clip = clip
        self._noise = noise
        self._stream = Stream(fresh_seed())
        self._handle = front.register_forward_hook(self._apply)

    def _apply(self, front: nn.Module, _inputs: object, activation: torch.Tensor) -> torch.Tensor:
        noise = self._noise if front.training else 0.0
        return guarded(activation, clip=self._clip, noise=noise, stream=self._stream)

    def remove(self) -> None:
        """Take the guard off the front."""
        self._handle.remove()


def epsilon_of_activations(*, noise: float, delta: float, releases: int = 1) -> float:
    """Return the epsilon of `releases` of one row's activation with noise of `noise` times its clip.

    By replacement: the row's input may change, its label is known. A clipped vector moves by at most twice the clip, on
    the grid as well; the discrete Gaussian's Rényi divergences are at most those of the continuous one, which this
    accounts for (C. Canonne, G. Kamath and T. Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020,
    theorem 4: of a vector they add up over its values).
    """
    return epsilon_of([(noise / 2, 1.0, releases)], delta=delta, accountant="rdp")


def distance_correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the distance correlation of the rows of two batches, from 0 (independent) to 1; differentiable.

    G. Székely, M. Rizzo and N. Bakirov, "Measuring and testing dependence by correlation of distances", Annals of
    Statistics 2007, definition 5; as a term of a loss: P. Vepakomma et al., "NoPeek: information leakage reduction to
    share activations in distributed deep learning", ICDM workshops 2020, section 3.
    """
    left, right = _centred(first), _centred(second)
    between = (left * right).mean()
    alone = (left * left).mean() * (right * right).mean()
    squared = between.clamp(min=0) / alone.clamp(min=1e-24).sqrt()
    return (squared + 1e-12).sqrt()


def _centred(rows: torch.Tensor) -> torch.Tensor:
    flat = rows.flatten(1).double()
    distances = torch.cdist(flat, flat)
    return distances - distances.mean(0, keepdim=True) - distances.mean(1, keepdim=True) + distances.mean()
