"""Both parties of a protocol in one process: their results, and what the server saw."""

from __future__ import annotations

import pytest
import torch

from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.in_process import run_pair
from splitsec.mpc.protocols.multiply import square


def _square(context: Context, query: int) -> torch.Tensor | None:
    mine = torch.full((4,), query + 3) if context.rank == CLIENT else torch.zeros(4, dtype=torch.int64)
    result = square(context, mine)
    other = context.collect(result, CLIENT)
    return None if other is None else result + other


def test_each_query_has_a_result_at_the_client() -> None:
    outcome = run_pair(_square, queries=2)
    assert [result.tolist() for result in outcome.client] == [[9] * 4, [16] * 4]
    assert outcome.server == [None, None]


def test_what_the_server_saw_is_uniform_and_not_the_secret() -> None:
    seen = run_pair(_square).seen[0]
    # Four equal secrets are seen under different masks; without masks they would be equal.
    assert len(seen) >= 4
    assert len(set(seen.tolist())) == len(seen)


def test_an_error_of_one_party_is_raised() -> None:
    def fails(context: Context, _query: int) -> None:
        if not context.planning:
            raise ZeroDivisionError(f"at {context.rank}")

    with pytest.raises(ZeroDivisionError):
        run_pair(fails, timeout=5)
