"""Encrypted prediction: sessions at the client and workers at the server."""
