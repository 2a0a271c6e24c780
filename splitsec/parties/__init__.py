"""Client, server and dealer: what each process does."""

from splitsec.parties.asking import ClientSession
from splitsec.parties.client import Client, Predictions
from splitsec.parties.dealer import Dealer
from splitsec.parties.server import Server

__all__ = ["Client", "ClientSession", "Dealer", "Predictions", "Server"]
