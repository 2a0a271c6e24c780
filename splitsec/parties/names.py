"""The fixed names of the two parties that there is one of; clients are named by their keys."""

SERVER = "server"
DEALER = "dealer"
