"""The names of the two parties that a run has one of each."""

from __future__ import annotations

from splitsec.party_names import DEALER, SERVER


def test_server_and_dealer_have_names_of_their_own() -> None:
    assert (SERVER, DEALER) == ("server", "dealer")
