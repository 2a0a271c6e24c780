"""Clients' data: files, datasets, partitions and batches."""
