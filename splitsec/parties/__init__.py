"""Client, server and dealer: what each process does."""

from splitsec.parties.client import Client, ClientSession, Predictions
from splitsec.parties.dealer import Dealer
from splitsec.parties.server import Server

__all__ = ["Client", "ClientSession", "Dealer", "Predictions", "Server"]
