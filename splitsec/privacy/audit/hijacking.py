"""Feature-space hijacking: a server that sends gradients of its own choosing instead of the loss's.

D. Pasquini, G. Ateniese, M. Bernaschi, "Unleashing the tiger: inference attacks on split learning", CCS 2021,
section 3. The server trains an encoder and a decoder of its own, and a critic that tells its features from the
client's; the gradient that the client gets makes its front imitate the encoder, whose features the decoder inverts.
This attacker does not keep to the protocol: the threat model of the rest does not have it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from splitsec.privacy.audit.inversion import Inverse


def hijack(
    front: nn.Module,
    private: torch.Tensor,
    public: torch.Tensor,
    *,
    steps: int = 1500,
    batch_size: int = 32,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Images that the server makes of private ones after so many steps of training with a client.

    Args:
        front: the client's, as it begins; a copy is trained.
        private: images of the client, (N, channels, height, width); the result is of them.
        public: the server's own.
        on_step: called after each step.
    """
    torch.manual_seed(seed)
    front = copy.deepcopy(front).train()
    with torch.no_grad():
        shape = tuple(front(private[:2]).shape[1:])
    pilot = _Pilot(tuple(public.shape[1:]), shape)
    decoder, critic = Inverse(shape, tuple(public.shape[1:])), _critic(shape)
    trained = [one for one in front.parameters() if one.requires_grad]
    client = torch.optim.Adam(trained, lr=1e-3) if trained else None
    own = torch.optim.Adam([*pilot.parameters(), *decoder.parameters()], lr=1e-3)
    judge = torch.optim.Adam(critic.parameters(), lr=5e-4)
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        mine = private[torch.randint(len(private), (batch_size,), generator=order)]
        theirs = public[torch.randint(len(public), (batch_size,), generator=order)]
        # What the client sends, and the gradient that it gets back in the place of its loss's.
        sent = front(mine)
        F.binary_cross_entropy_with_logits(critic(sent), torch.ones(batch_size, 1)).backward(inputs=trained or [sent])
        if client is not None:
            client.step()
            client.zero_grad()
        features = pilot(theirs)
        own.zero_grad()
        F.mse_loss(decoder(features), theirs).backward()
        own.step()
        judge.zero_grad()
        real = F.binary_cross_entropy_with_logits(critic(features.detach()), torch.ones(batch_size, 1))
        false = F.binary_cross_entropy_with_logits(critic(sent.detach()), torch.zeros(batch_size, 1))
        (real + false).backward()
        judge.step()
        on_step()
    with torch.no_grad():
        made = torch.cat([decoder(front(part)) for part in private.split(256)])
    return made.clamp(float(public.min()), float(public.max()))


class _Pilot(nn.Module):
    """The server's encoder: images to features of the front's shape."""

    def __init__(self, image: tuple[int, ...], features: tuple[int, ...]) -> None:
        super().__init__()
        self._features = features
        if len(features) == 3:
            self.body: nn.Module = nn.Sequential(
                nn.Conv2d(image[0], 32, 3, padding=1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(features[1:]),
                nn.Conv2d(32, features[0], 3, padding=1),
            )
        else:
            size = int(torch.Size(features).numel())
            pixels = int(torch.Size(image).numel())
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.body(x)
        return made.reshape(-1, *self._features)


def _critic(features: tuple[int, ...]) -> nn.Module:
    size = int(torch.Size(features).numel())
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))
