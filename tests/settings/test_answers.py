"""Rules of answers: ports, counts, and what is revealed."""

from __future__ import annotations

import pytest

from splitsec.errors import ConfigError
from splitsec.settings.answers import AnswerRules, check_answer_rules


@pytest.mark.parametrize(("text", "ports"), [("40000-40100", (40000, 40100)), ("40000", (40000, 40000)), (None, None)])
def test_ports_are_a_first_and_a_last(text: str | None, ports: tuple[int, int] | None) -> None:
    assert AnswerRules(session_ports=text).ports == ports


@pytest.mark.parametrize("text", ["", "a-b", "2-1", "0-5", "1-70000", "1-2-3"])
def test_what_is_no_range_of_ports_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write the first and the last port"):
        check_answer_rules(AnswerRules(session_ports=text), labels=True)


def test_labels_need_a_tail_that_ends_with_them() -> None:
    check_answer_rules(AnswerRules(answers="label"), labels=True)
    with pytest.raises(ConfigError, match="ends with the classes"):
        check_answer_rules(AnswerRules(answers="label"), labels=False)


def test_a_count_outlives_the_server() -> None:
    with pytest.raises(ConfigError, match="counts"):
        check_answer_rules(AnswerRules(predictions_per_client=5), labels=True)
    check_answer_rules(AnswerRules(predictions_per_client=5, counts="counts"), labels=True)
