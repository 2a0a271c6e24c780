import pytest
import torch

from splitsec.errors import ConfigError, MessageError
from splitsec.training.client.intersection import Alignment, _hashed, shape_of
from splitsec.training.intersection import common_places


def _align(*lists: list[str]) -> list[list[int]]:
    parties = [Alignment(ids) for ids in lists]
    complete = []
    for index, party in enumerate(parties):
        points = party.mine()
        for other in parties[index + 1 :] + parties[:index]:
            points = other.pass_on(points, f"client-{index}")
        complete.append(points)
    places = common_places({str(index): points for index, points in enumerate(complete)})
    return [party.common(places[str(index)]) for index, party in enumerate(parties)]


def test_common_rows_in_one_order() -> None:
    lists = [
        ["dave", "anna", "émile", "carl", "zoe"],
        ["zoe", "bob", "anna", "dave"],
        ["anna", "zoe", "fred", "dave", "gina"],
    ]
    for count in (2, 3):
        rows = _align(*lists[:count])
        found = [[ids[row] for row in mine] for ids, mine in zip(lists, rows, strict=False)]
        assert all(one == ["anna", "dave", "zoe"] for one in found)


def test_what_travels_is_neither_hash_nor_order_of_an_id() -> None:
    ids = [str(number) for number in range(50)]
    one, other = Alignment(ids), Alignment(ids)
    sent = {bytes(point.tolist()) for point in one.mine()}
    hashes = {_hashed(text).public_numbers().x.to_bytes(32, "big") for text in ids}
    assert not sent & hashes
    # Another key, another run: nothing to recognise an id by. The control: multiplied by both keys they are equal.
    assert not sent & {bytes(point.tolist()) for point in other.mine()}
    first = {bytes(point.tolist()) for point in other.pass_on(one.mine())}
    assert first == {bytes(point.tolist()) for point in one.pass_on(other.mine())}
    # The order is random: the points of the same ids come back in another place.
    assert one._order != other._order


def test_ids_that_cannot_be_aligned() -> None:
    with pytest.raises(ConfigError, match="the id of row 1 comes twice"):
        Alignment(["a", "b", "c", "b"])
    with pytest.raises(ConfigError, match="no ids"):
        Alignment([])
    with pytest.raises(ConfigError) as caught:
        _align(["Bed-007", "Bed-008"], ["7", "8", "9"])
    for words in (
        "no id of this client's 2 rows is known to all other clients (client-1 has 3 ids)",
        "check that the ids are written alike",
        "they look like 'Aaa-009'",
    ):
        assert words in str(caught.value)
    assert "007" not in str(caught.value)
    with pytest.raises(MessageError, match="no point"):
        Alignment(["a"]).pass_on(torch.full((1, 32), 255, dtype=torch.uint8))
    for places in ([2], [-1], [0, 0]):
        with pytest.raises(MessageError, match="not there"):
            Alignment(["a", "b"]).common(torch.tensor(places))


def test_few_common_ids_are_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """The control: where half of them are common there is nothing to say."""
    ids = [f"{number:03d}" for number in range(10)]
    for common, says in ((4, True), (5, False)):
        party, other = Alignment(ids), Alignment([*ids[:common], *(f"x{number}" for number in range(10 - common))])
        points = [other.pass_on(party.mine(), "client-0"), party.pass_on(other.mine(), "client-1")]
        places = common_places({"0": points[0], "1": points[1]})
        assert len(party.common(places["0"])) == common
        assert bool(caplog.messages) == says
        if says:
            assert "only 4 of this client's 10 ids are known to all other clients (client-1 has 10 ids)" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    ("text", "shape"), [("Ward-0042", "Aaaa-0099"), (" 42", " 99"), ("100", "999"), ("7.0", "9.9"), ("é0", "a9")]
)
def test_the_shape_of_an_id_is_not_the_id(text: str, shape: str) -> None:
    assert shape_of(text) == shape


def test_blanks_and_ways_of_writing_accents_do_not_count() -> None:
    apart, together = "Jose\N{COMBINING ACUTE ACCENT}", "Jos\N{LATIN SMALL LETTER E WITH ACUTE}"
    assert apart != together
    assert _align([f"{apart} ", "b"], ["b", together]) == [[0, 1], [1, 0]]
    # The control: another letter is another id.
    assert _align([apart, "b"], ["b", "Jose"]) == [[1], [0]]
    with pytest.raises(ConfigError, match="comes twice"):
        Alignment([apart, together])
