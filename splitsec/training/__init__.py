"""The split-training loop, aggregation and the federated loader."""
