"""Client, server and dealer: what each process does."""

from splitsec.parties.client import Client
from splitsec.parties.dealer import Dealer
from splitsec.parties.predictions import Predictions
from splitsec.parties.server import Server
from splitsec.parties.setup import Network, Runtime, Serving, Storage
from splitsec.prediction.client.session import ClientSession

__all__ = ["Client", "ClientSession", "Dealer", "Network", "Predictions", "Runtime", "Server", "Serving", "Storage"]
