"""The names of the server and the dealer, of which a run has one each; clients are named by their keys."""

SERVER = "server"
DEALER = "dealer"
