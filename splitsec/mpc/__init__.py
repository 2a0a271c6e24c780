"""The encrypted engine: ring, randomness, dealer, sessions and programs on shares."""
