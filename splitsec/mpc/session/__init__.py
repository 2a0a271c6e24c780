"""A prediction session: its correlations, messages and prefetching."""
