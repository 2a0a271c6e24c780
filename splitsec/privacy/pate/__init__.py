"""Private aggregation of teacher ensembles (PATE)."""
