"""All messages on the sockets of a party: those of both phases together."""

from __future__ import annotations

from typing import TypeAlias

from splitsec.mpc.session.messages import Done
from splitsec.prediction.messages import PredictionBody, PredictionDealerBody
from splitsec.training.messages import TrainingBody, TrainingDealerBody
from splitsec.transport.codec import Codec, Message, Refused


class Leave(Message, frozen=True):
    """Client to server: nothing more will come."""


ServerBody: TypeAlias = TrainingBody | PredictionBody | Leave | Done | Refused
# Programs travel to clients, and where these give a model in parts also from them.
server_codec: Codec[Message] = Codec(ServerBody, header_bytes=1 << 22)

DealerBody: TypeAlias = TrainingDealerBody | PredictionDealerBody
dealer_codec: Codec[Message] = Codec(DealerBody)
