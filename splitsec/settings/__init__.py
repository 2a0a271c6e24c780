"""Everything that a user can set: of a run, of its privacy, and of each party."""
