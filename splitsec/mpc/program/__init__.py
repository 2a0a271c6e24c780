"""Programs on shares: compiled from a tail, checked, planned and run."""
