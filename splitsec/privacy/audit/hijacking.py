"""Feature-space hijacking: a server that sends gradients of its own choosing instead of the loss's.

D. Pasquini, G. Ateniese, M. Bernaschi, "Unleashing the tiger: inference attacks on split learning", CCS 2021,
section 3. The server trains an encoder and a decoder of its own, and a critic that tells its features from the
client's; the gradient that the client gets makes its front imitate the encoder, whose features the decoder inverts.
This attacker does not keep to the protocol: the threat model of the rest does not have it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from splitsec.privacy.audit.base import ATTACKS, Attack, Finding, Progress, Steps, Target, compare_images
from splitsec.privacy.audit.inverse_network import Inverse
from splitsec.privacy.audit.page import Strip

STEPS = Steps(quick=400, thorough=1500)


def hijack(
    front: nn.Module,
    private: torch.Tensor,
    public: torch.Tensor,
    *,
    steps: int = STEPS.thorough,
    batch_size: int = 32,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Train with a client as a hijacking server; return the images that the server makes of the private ones.

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
    encoder = _Encoder(tuple(public.shape[1:]), shape)
    decoder, critic = Inverse(shape, tuple(public.shape[1:])), _critic(shape)
    trained = [parameter for parameter in front.parameters() if parameter.requires_grad]
    of_client = torch.optim.Adam(trained, lr=1e-3) if trained else None
    of_server = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    of_critic = torch.optim.Adam(critic.parameters(), lr=5e-4)
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        private_batch = private[torch.randint(len(private), (batch_size,), generator=order)]
        public_batch = public[torch.randint(len(public), (batch_size,), generator=order)]
        # What the client sends, and the gradient that it gets back in the place of its loss's.
        sent = front(private_batch)
        functional.binary_cross_entropy_with_logits(critic(sent), torch.ones(batch_size, 1)).backward(
            inputs=trained or [sent]
        )
        if of_client is not None:
            of_client.step()
            of_client.zero_grad()
        features = encoder(public_batch)
        of_server.zero_grad()
        functional.mse_loss(decoder(features), public_batch).backward()
        of_server.step()
        of_critic.zero_grad()
        real = functional.binary_cross_entropy_with_logits(critic(features.detach()), torch.ones(batch_size, 1))
        false = functional.binary_cross_entropy_with_logits(critic(sent.detach()), torch.zeros(batch_size, 1))
        (real + false).backward()
        of_critic.step()
        on_step()
    with torch.no_grad():
        images = torch.cat([decoder(front(part)) for part in private.split(256)])
    return images.clamp(float(public.min()), float(public.max()))


class _Encoder(nn.Module):
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
        features: torch.Tensor = self.body(x)
        return features.reshape(-1, *self._features)


def _critic(features: tuple[int, ...]) -> nn.Module:
    size = int(torch.Size(features).numel())
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))


class Hijacking(Attack):
    """Trains with the client's front, on all private images, and inverts the victims' features."""

    position = 30

    def stages(self, target: Target) -> Mapping[str, int]:
        return {"feature-space hijacking": STEPS.at(target.effort)}

    def run(self, target: Target, progress: Progress) -> Finding:
        progress.begin("feature-space hijacking")
        images = hijack(
            target.split.front,
            target.rows.private,
            target.rows.public,
            steps=STEPS.at(target.effort),
            seed=target.seed,
            on_step=progress.step,
        )[: len(target.victims)]
        finding = compare_images("hijacking (breaks the protocol)", target.victims, images, target.guess)
        return replace(finding, strips=tuple(Strip("hijacking", strip.images) for strip in finding.strips))


ATTACKS.register("hijack")(Hijacking())
