"""Functions of one number on shares, by both engines."""

from benchmarks import functions


def test_ours_are_as_exact_as_crypten_s_and_take_fewer_rounds() -> None:
    records = {(record.function, record.engine): record for record in functions.measure()}
    assert {name for name, _ in records} == set(functions.FUNCTIONS)
    for name in functions.FUNCTIONS:
        ours, theirs = records[name, "splitsec"], records[name, "crypten"]
        assert ours.error <= 3e-3
        assert ours.error < theirs.error
        assert ours.rounds < theirs.rounds
