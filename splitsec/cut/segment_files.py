"""Files of segments, with a record of where their values come from.

A file is ordinary safetensors, which every library reads. Its metadata has an entry `splitsec`: a JSON object with the
fields of `SegmentRecord`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from splitsec.cut import SplitModel, load_part
from splitsec.cut.origin import COUNTER, Origin, origin_of, segments_digest, set_origin, values_digest, whole_origin
from splitsec.errors import ConfigError, first_line
from splitsec.tensors import write_tensors
from splitsec.version import __version__

FORMAT = 1
_ENTRY = "splitsec"
Role: TypeAlias = Literal["front", "tail", "part"]


@dataclass(frozen=True)
class FrontFacts:
    """What the record of a front says besides.

    Attributes:
        columns: of a front for columns, how they are changed before it takes them: see `Standardisation.as_json`.
        own: the front is its party's own, since nothing was combined in the run: it predicts for no other party.
    """

    columns: dict[str, Any] | None = None
    own: bool = False


class SegmentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a segment in its file.

    Attributes:
        format: of the record.
        version: of splitsec that wrote it.
        role: `front` (with the head of a U), `tail`, or `part` of a model that was trained apart.
        party: whose file it is.
        cut: where the model was cut.
        run, rounds, mark: as in `Origin`; `mark` is equal for the front and the tail of one run, since it is a digest
            of both.
        digest: of the values in the file, so that a file that was changed is noticed.
        columns, own: as in `FrontFacts`.
    """

    format: int = FORMAT
    version: str = __version__
    role: Role
    party: str
    cut: str
    run: str
    rounds: int
    mark: str
    digest: str
    columns: dict[str, Any] | None = None
    own: bool = False

    @property
    def origin(self) -> Origin:
        """Return where the values come from."""
        return Origin(mark=self.mark, run=self.run, rounds=self.rounds)


def save_segment(
    path: Path,
    values: Mapping[str, torch.Tensor],
    *,
    role: Role,
    party: str,
    cut: str,
    origin: Origin,
    front: FrontFacts | None = None,
) -> None:
    """Write a segment's values with the record of their origin; the file is there as a whole or not at all.

    Args:
        front: what more to say of a front. It is in the record and not among the tensors, so that
            `front.load_state_dict(load_file(path))` works.

    Raises:
        ConfigError: the file cannot be written.
    """
    front = front or FrontFacts()
    record = SegmentRecord(
        role=role,
        party=party,
        cut=cut,
        run=origin.run,
        rounds=origin.rounds,
        mark=origin.mark,
        digest=values_digest(values.items()),
        columns=front.columns,
        own=front.own,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, values, {_ENTRY: msgspec.json.encode(record).decode()})
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or first_line(error)}") from None


def read_record(path: Path) -> SegmentRecord | None:
    """Return the record of a safetensors file; None if it has none, as files of other programs.

    Raises:
        ConfigError: the file cannot be read, or a newer splitsec wrote it.
    """
    try:
        with safe_open(path, "pt") as file:
            entry = (file.metadata() or {}).get(_ENTRY)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except Exception as error:
        raise ConfigError(
            f"cannot read weights from {path}: {first_line(error)}; it must be a safetensors file, as "
            "safetensors.torch.save_file(model.state_dict(), PATH) writes it"
        ) from None
    if entry is None:
        return None
    try:
        record = msgspec.json.decode(entry, type=SegmentRecord)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ConfigError(f"the record in {path} cannot be read ({first_line(error)}); was the file changed?") from None
    if record.format > FORMAT:
        raise ConfigError(f"{path} was written by splitsec {record.version}, which is newer than {__version__}: update")
    return record


def check_role(path: Path, role: Role) -> None:
    """Raise `ConfigError` for a file in which a run saved another segment; other files are not looked into."""
    record = read_record(path)
    if record is not None and record.role != role:
        raise ConfigError(f"{path} holds the {record.role} of {record.party}, and a {role} is wanted here")


def read_segment(path: Path, *, role: Role, cut: str) -> tuple[dict[str, torch.Tensor], SegmentRecord]:
    """Return the tensors and the record of a file that `save_segment` wrote.

    Raises:
        ConfigError: it has no record, is of another role or cut, or its values are not those that were saved.
    """
    record = read_record(path)
    if record is None:
        raise ConfigError(f"{path} has no record of where its values come from; give a file that a run saved")
    check_role(path, role)
    if record.cut != cut:
        raise ConfigError(f"{path} was cut at '{record.cut}', and the cut here is '{cut}'")
    tensors = load_file(path)
    if values_digest(tensors.items()) != record.digest:
        raise ConfigError(f"the values in {path} are not those that {record.party} saved: the file was changed")
    return tensors, record


def load_trained(split: SplitModel, path: Path) -> None:
    """Load the front (with the head of a U) or the tail that a run saved, with the record of the run.

    `load_state_dict` would load the same values without their origin, and a segment of unknown origin predicts nothing.

    Args:
        path: a file that `Client.save`, `Server.save` or a party with a TOML file has written.

    Raises:
        ConfigError: it was cut elsewhere, was changed, or has no record.
        CutError: its values do not fit the model.

    Example:
        >>> split = SplitModel(model, cut="pool")  # doctest: +SKIP
        >>> load_trained(split, Path("out/front.safetensors"))  # doctest: +SKIP
    """
    record = read_record(path)
    role: Role = "tail" if record is not None and record.role == "tail" else "front"
    values, record = read_segment(path, role=role, cut=split.cut)
    front = [split.front] if split.head is None else [split.front, split.head]
    segments = [split.tail] if role == "tail" else front
    for segment in segments:
        load_part(segment, values)
    digest = segments_digest(segments)
    for segment in segments:
        set_origin(segment, replace(record.origin, architecture=origin_of(segment).architecture, digest=digest))


def origin_of_file(path: Path, *, role: Role, cut: str, whole: Collection[str], party: str = "") -> Origin:
    """Return the origin of the values that a file of weights gives a segment.

    Args:
        whole: the names of all values of the whole model.
        party: which party loads it; empty for any.

    Raises:
        ConfigError: the file is of another role or cut, it holds the own front of another party, or it holds a part
            of a model and no record.
    """
    record = read_record(path)
    if record is not None:
        if record.own and party and party != record.party:
            raise ConfigError(
                f"{path} holds the front of {record.party}, and this is {party}: where nothing is combined (combine = "
                "'none') each client predicts with its own"
            )
        return read_segment(path, role=role, cut=cut)[1].origin
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        missing = sorted(name for name in set(whole) - names if not name.endswith(COUNTER))
        if missing:
            raise ConfigError(
                f"{path} lacks {missing[0]} of the model and has no record of where its values come from, so that it "
                "is not known whether they belong to the other segments: give a file that a run saved, or the weights "
                "of the whole model"
            )
        return whole_origin({name: file.get_tensor(name) for name in sorted(names & set(whole))})
