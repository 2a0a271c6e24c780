"""The server's half of split training."""
