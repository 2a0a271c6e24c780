"""The client's half of split training."""
