"""Benchmarks of a checkout: one question a file. `README.md` has the rules of measuring."""
