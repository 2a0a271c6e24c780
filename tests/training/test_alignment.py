import pytest
import torch

from splitsec.errors import ConfigError, MessageError
from splitsec.training.alignment import Alignment, _hashed, common_places


def _align(*lists: list[str]) -> list[list[int]]:
    parties = [Alignment(ids) for ids in lists]
    complete = []
    for index, party in enumerate(parties):
        points = party.mine()
        for other in parties[index + 1 :] + parties[:index]:
            points = other.pass_on(points)
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
    with pytest.raises(
        ConfigError, match="no id of this client's 2 rows is known to all other clients: check that the ids are written"
    ):
        _align(["001", "002"], ["1", "2"])
    with pytest.raises(MessageError, match="no point"):
        Alignment(["a"]).pass_on(torch.full((1, 32), 255, dtype=torch.uint8))
    for places in ([2], [-1], [0, 0]):
        with pytest.raises(MessageError, match="not there"):
            Alignment(["a", "b"]).common(torch.tensor(places))
