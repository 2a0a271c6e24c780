"""What a client asks of encrypted predictions."""

from __future__ import annotations

import pytest

from splitsec.errors import ConfigError
from splitsec.settings.query import Query, check_query


def test_a_query_of_no_rows_is_refused() -> None:
    check_query(Query())
    with pytest.raises(ConfigError, match="batch_size"):
        check_query(Query(batch_size=0))
    with pytest.raises(ConfigError, match="ahead"):
        check_query(Query(ahead=-1))


def test_an_unknown_comparison_is_refused() -> None:
    check_query(Query(comparison="dcf"))
    with pytest.raises(ConfigError, match="there is no comparison 'guess'; choose one of: .*tables"):
        check_query(Query(comparison="guess"))
