from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from splitsec.cut.origin import Origin, whole_origin
from splitsec.cut.segment_files import FrontFacts, origin_of_file, read_record, read_segment, save_segment
from splitsec.errors import ConfigError

RUN = Origin(mark="a" * 32, run="b" * 32, rounds=3)


def _saved(path: Path, origin: Origin = RUN) -> dict[str, torch.Tensor]:
    values = dict(nn.Linear(3, 2).state_dict())
    save_segment(path, values, role="front", party="a", cut="pool", origin=origin)
    return values


def test_a_file_gives_back_values_and_where_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "out" / "front.safetensors"
    values = _saved(path)
    tensors, record = read_segment(path, role="front", cut="pool")
    assert all(torch.equal(tensors[name], value) for name, value in values.items())
    assert (record.origin, record.party, record.version) == (RUN, "a", "0.1.0")
    # Any other library reads it as well.
    assert set(load_file(path)) == set(values)


@pytest.mark.parametrize(
    ("role", "cut", "says"),
    [
        ("tail", "pool", "holds the front of a, and a tail is wanted here"),
        ("front", "relu", "was cut at 'pool', and the cut here is 'relu'"),
    ],
)
def test_another_role_or_cut_is_refused(tmp_path: Path, role: str, cut: str, says: str) -> None:
    _saved(tmp_path / "front.safetensors")
    with pytest.raises(ConfigError, match=says):
        read_segment(tmp_path / "front.safetensors", role=role, cut=cut)  # type: ignore[arg-type]


def test_values_that_were_changed_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "front.safetensors"
    _saved(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match="the file was changed"):
        read_segment(path, role="front", cut="pool")


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "front.safetensors"
    _saved(path)
    record = (
        '{"format":9,"version":"7.0","role":"front","party":"a","cut":"p","run":"","rounds":0,"mark":"","digest":""}'
    )
    save_file({"x": torch.zeros(1)}, path, metadata={"splitsec": record})
    with pytest.raises(ConfigError, match="written by splitsec 7.0, which is newer"):
        read_record(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"splitsec": "{"})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_record(path)


def test_weights_of_a_whole_model_have_its_origin_and_a_part_without_a_record_has_none(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    state = dict(model.state_dict())
    path = tmp_path / "whole.safetensors"
    # Files without counters of batches are common.
    save_file({name: value for name, value in state.items() if "num_batches" not in name}, path)
    assert origin_of_file(path, role="front", cut="0", whole=state.keys()) == whole_origin(state)
    save_file({name: value for name, value in state.items() if name.startswith("0.")}, path)
    with pytest.raises(ConfigError, match=r"lacks 1.bias of the model and has no record"):
        origin_of_file(path, role="front", cut="0", whole=state.keys())


def test_what_cannot_be_written_or_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        _saved(tmp_path / "file" / "front.safetensors")
    with pytest.raises(ConfigError, match="there is no file"):
        read_record(tmp_path / "none.safetensors")
    (tmp_path / "x.pt").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="it must be a safetensors file"):
        read_record(tmp_path / "x.pt")


def test_a_front_of_another_run_is_refused_predictions(tmp_path: Path) -> None:
    values = {"0.weight": torch.ones(2, 2)}
    for name, own in (("own", True), ("combined", False)):
        path, origin = tmp_path / name, Origin(mark="0" * 32, run="1" * 32, rounds=2)
        save_segment(path, values, role="front", party="a", cut="pool", origin=origin, front=FrontFacts(own=own))
        options = {"role": "front", "cut": "pool", "whole": values}
        assert origin_of_file(path, party="a", **options) == origin
        if own:
            with pytest.raises(ConfigError, match="holds the front of a, and this is b"):
                origin_of_file(path, party="b", **options)
        else:
            assert origin_of_file(path, party="b", **options) == origin
