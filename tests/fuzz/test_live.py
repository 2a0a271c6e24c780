"""Damaged messages of a party with a key to a running server and dealer, while an honest client predicts."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import get_args

import pytest
import torch
import zmq
from msgspec import inspect
from support.fuzz_inputs import SECONDS, chooser, damaged_frames, message_of, rounds
from support.parties_in_threads import model, world

from splitsec.parties.messages import DealerBody, ServerBody
from splitsec.transport import Wire

# As long as it is told to go on, and as much again to start.
pytestmark = pytest.mark.timeout(120 + 2 * SECONDS)


@pytest.mark.parametrize("target", ["server", "dealer"])
def test_parties_survive_and_an_honest_client_gets_what_is_right(target: str, tmp_path: Path) -> None:
    chosen = chooser(f"live {target}")
    bodies = ServerBody if target == "server" else DealerBody
    # Not those that ask for a session: each takes a process. Nor a client's leaving.
    kinds = [inspect.type_info(one) for one in get_args(bodies) if one.__name__ not in ("OpenSession", "Leave")]
    images = torch.rand(3, 4)
    with torch.no_grad():
        right = model().eval()(images)
    wrong: list[str] = []
    done = threading.Event()
    predicted = 0
    with world(tmp_path, epochs=0, stay=True, clients=3, timeout=20.0) as here, Wire(here.keys["client-1"]) as wire:
        address, key = (here.server.address if target == "server" else here.dealer.address), here.peers[target]
        hostile = wire.connect(zmq.DEALER, address, key)
        hostile.setsockopt(zmq.SNDTIMEO, 20_000)

        def honest() -> None:
            nonlocal predicted
            with here.client("client-2", timeout=30) as client:
                while not (done.is_set() and predicted):
                    got = client.predict(images).logits
                    if got is None or (got - right).abs().max() > 1e-2:
                        wrong.append(str(got))
                    predicted += 1

        thread = threading.Thread(target=honest)
        thread.start()
        count = answers = 0
        for count in rounds(chosen, 2.0):
            hostile.send_multipart(damaged_frames(message_of(chosen.choice(kinds), chosen), chosen))
            while hostile.poll(1 if count % 20 == 0 else 0):
                hostile.recv_multipart()
                answers += 1
        done.set()
        thread.join(60)
        # Not in the middle of its messages, whose answers wait at this end, which asks whether the other is there (see
        # `Wire.connect`).
        while hostile.poll(1000):
            hostile.recv_multipart()
            answers += 1
        hostile.close(0)
        # Once more when all of it has been dealt with.
        with here.client("client-3", timeout=30) as client:
            got = client.predict(images).logits
        assert got is not None
        assert (got - right).abs().max() < 1e-2
    print(f"{count + 1} messages, {answers} answers, {predicted} predictions meanwhile")
    assert not thread.is_alive()
    assert not wrong
    assert predicted
    assert answers
