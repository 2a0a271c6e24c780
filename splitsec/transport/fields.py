"""Types of message fields with their limits: no code behind a decoder sees a longer text or a larger number."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

# Of a tensor, and of a layer's options.
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 31

# A party's name, as `keys.check_party_name` allows.
PartyName: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9-]{0,62}\Z")]
OptionalName: TypeAlias = Annotated[str, Meta(pattern=r"\A([a-z][a-z0-9-]{0,62})?\Z")]
# Of a run, a start, a session, or an owner's weights.
Identifier: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
OptionalIdentifier: TypeAlias = Annotated[str, Meta(pattern=r"\A([0-9a-f]{32})?\Z")]
Start: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-z-]{0,64}\Z")]
# Free text, such as the name of a layer or of a cut.
Text: TypeAlias = Annotated[str, Meta(max_length=1000)]
ShortText: TypeAlias = Annotated[str, Meta(max_length=100)]
Seed: TypeAlias = Annotated[bytes, Meta(max_length=64)]
# Rounds, steps, queries, rows.
Number: TypeAlias = Annotated[int, Meta(ge=0, lt=MAX_SIZE)]
Size: TypeAlias = Annotated[int, Meta(ge=0, lt=MAX_SIZE)]
Sizes: TypeAlias = Annotated[tuple[Size, ...], Meta(max_length=MAX_DIMENSIONS)]
Port: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 16)]
