"""Attacks on a cut, and what they achieve beside a guess: what somebody curious learns.

Every attack gets what the server of a split run gets, and no more; where it needs inputs of its own to train on, they
come from rows that the clients do not hold.
"""
