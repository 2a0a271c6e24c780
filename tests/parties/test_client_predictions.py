"""Predictions at a client: what is asked for, and answers to another question that are refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from support.parties_in_threads import part, world

from splitsec import Query, SplitModel
from splitsec.cut import trace
from splitsec.errors import ConfigError, MessageError
from splitsec.mpc.program.compile import CompileOptions, compile_tail
from splitsec.parties.client_predictions import _check_opened
from splitsec.prediction.messages import SessionOpened

SHAPE = (2, 4)


def _opened(**options: object) -> SessionOpened:
    program, _ = compile_tail(trace(torch.nn.Linear(4, 3)), SHAPE, CompileOptions(**options))  # type: ignore[arg-type]
    return SessionOpened(session="0" * 32, port=1, program=program)


def test_a_program_for_what_was_asked_is_taken() -> None:
    _check_opened(_opened(), SHAPE, Query())
    _check_opened(_opened(reveal="label"), SHAPE, Query(reveal="label"))


@pytest.mark.parametrize("options", [{"reveal": "label"}, {"checked": True}, {"comparison": "dcf"}])
def test_a_program_that_does_something_else_is_refused(options: dict[str, object]) -> None:
    """A server that opens more, or less, than was asked for is found out before anything is sent."""
    with pytest.raises(MessageError, match="does not reveal, check or compare as was asked"):
        _check_opened(_opened(**options), SHAPE, Query())


def test_a_program_for_another_shape_or_an_impossible_one_is_refused() -> None:
    with pytest.raises(MessageError, match="for another shape"):
        _check_opened(_opened(), (5, 4), Query())
    opened = _opened()
    broken = msgspec.structs.replace(opened, program=msgspec.structs.replace(opened.program, precision=0))
    with pytest.raises(MessageError, match="impossible program"):
        _check_opened(broken, SHAPE, Query())


def test_a_last_query_that_is_not_full_is_filled_up_and_cut_again(tmp_path: Path) -> None:
    images = part(rows=5).test_images
    with world(tmp_path, epochs=0, stay=True) as here, here.client("client-1") as client:
        predictions = client.predict(images, Query(batch_size=2))
        with torch.no_grad():
            plain = here.split.eval()(images)
    assert predictions.logits is not None
    assert (predictions.logits - plain).abs().max() < 2e-3
    assert len(predictions.online_ms) == 3


def test_what_cannot_be_predicted_is_refused_before_a_session_opens(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here, here.client("client-1") as client:
        with pytest.raises(MessageError, match="there is nothing to predict"):
            client.predict(torch.zeros(0, 4))
        with pytest.raises(MessageError, match="give real numbers"):
            client.predict(torch.zeros(2, 4, dtype=torch.int64))
        with pytest.raises(ConfigError, match="batch_size"):
            client.predict(torch.zeros(2, 4), Query(batch_size=0))
    with world(tmp_path / "u", epochs=0, stay=True, cut="1,4") as here:
        split = SplitModel(torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(6))), "1,4")
        with (
            here.client("client-1", split.front, head=split.head, cut="1,4") as client,
            pytest.raises(ConfigError, match="ends before the labels"),
        ):
            client.predict(torch.zeros(2, 4), Query(reveal="label"))
