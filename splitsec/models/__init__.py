"""Networks: those of the demo and of the literature, and loading a user's own by name."""

from splitsec.models.demo import (
    SmallCNN,
    breast_columns,
    credit_columns,
    digits_cnn,
    digits_half,
    mnist_cnn,
    mnist_half,
)
from splitsec.models.load import absolute_source, load_model, load_weights

__all__ = [
    "SmallCNN",
    "absolute_source",
    "breast_columns",
    "credit_columns",
    "digits_cnn",
    "digits_half",
    "load_model",
    "load_weights",
    "mnist_cnn",
    "mnist_half",
]
