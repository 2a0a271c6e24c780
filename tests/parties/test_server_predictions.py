"""Predictions at the server: who has to wait, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.parties_in_threads import world

from splitsec.errors import MessageError, RefusedError
from splitsec.mpc.prg import fresh_seed
from splitsec.prediction.messages import Ask, Calibration, Half, OpenSession, Serve


def test_in_training_no_session_opens(tmp_path: Path) -> None:
    with world(tmp_path) as here, here.client("client-1") as client:
        for body in (OpenSession((1, 6), fresh_seed()), Serve(3)):
            with pytest.raises(RefusedError, match="the tail is still in training"):
                client._connection.server.request(body)


def test_what_this_run_has_no_use_for_is_refused(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here, here.client("client-1") as client:
        with pytest.raises(RefusedError, match="wants no parts of a model"):
            client._connection.server.request(Half("0" * 32, ()), {"weights": []})
        for body in (Serve(3), Ask("0" * 32, 0, (1,))):
            with pytest.raises((MessageError, RefusedError)):
                client._connection.server.request(body)


def test_a_calibration_has_a_few_activations_of_usual_size(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here, here.client("client-1") as client:
        for activations in (torch.zeros(0, 6), torch.zeros(65, 6), torch.full((2, 6), 1e6)):
            with pytest.raises(Exception, match=r"calibration"):
                client._connection.server.request(Calibration(), {"activations": activations})


def test_nobody_waits_and_nothing_is_open_at_first(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here:
        predictions = here.server._predictions
        assert predictions.waiting == []
        assert not predictions.parts_missing(0.0)
        with here.client("client-1") as client, client.session((1, 6)) as session:
            session.run(torch.zeros(1, 6))
            assert here.server._predictions._service is not None
