"""Datasets: how each is loaded, and how the demo trains on it. One file a dataset."""

from splitsec.data.datasets.base import DATASETS, Dataset, DemoSettings, demo_settings, load_columns, load_dataset

__all__ = ["DATASETS", "Dataset", "DemoSettings", "demo_settings", "load_columns", "load_dataset"]
