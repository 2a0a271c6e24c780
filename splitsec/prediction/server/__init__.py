"""The server's half of encrypted prediction."""
