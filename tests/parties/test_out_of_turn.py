"""What one client says out of turn harms nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import part, world

from splitsec.errors import RefusedError
from splitsec.events import Dropped, Joined, RoundDone


@pytest.mark.parametrize("second", ["train", "predict"])
def test_a_second_process_with_a_clients_name_does_not_end_what_the_first_does(tmp_path: Path, second: str) -> None:
    told: list[BaseException] = []
    dropped: list[Any] = []

    def server_says(event: Any) -> None:
        if isinstance(event, Dropped):
            dropped.append(event)

    with world(tmp_path, epochs=3, report=server_says) as here:

        def twin() -> None:
            try:
                with here.client("client-1") as client:
                    if second == "train":
                        client.train(part(1), seed=1)
                    else:
                        client.predict(part(1).test_images[:1])
            except RefusedError as error:
                told.append(error)

        def first() -> Any:
            with here.client("client-1") as client:

                def after_a_round(event: Any) -> None:
                    if isinstance(event, RoundDone) and event.round == 1:
                        twin()

                client._report = after_a_round
                client.train(part(1), seed=1)

        def other() -> Any:
            with here.client("client-2") as client:
                client.train(part(2), seed=2)

        results = here.together(first, other)
        assert results == [None, None]
        assert len(told) == 1
        assert ("another process" if second == "train" else "still in training") in str(told[0])
    assert not dropped


@pytest.mark.parametrize("combine", ["average", "relay"])
def test_a_dealer_that_is_started_again_before_a_client_has_its_first_seed(tmp_path: Path, combine: str) -> None:
    with world(tmp_path, epochs=2, timeout=10, settings={"aggregation": combine}) as here:
        restarted = []

        def train(name: str, seed: int) -> Any:
            with here.client(name, timeout=10, join_timeout=10) as client:

                def welcomed(event: Any) -> None:
                    if isinstance(event, Joined) and name == "client-1" and not restarted:
                        restarted.append(event)
                        here.restart_dealer()

                client._report = welcomed
                client.train(part(seed), seed=seed)
                return client.front.state_dict()

        one, two = here.together(lambda: train("client-1", 1), lambda: train("client-2", 2))
        assert restarted
        assert isinstance(one, dict), one
        assert isinstance(two, dict), two
        assert all(torch.equal(one[key], two[key]) for key in one)
