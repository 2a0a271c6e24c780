"""The client's half of encrypted prediction."""
