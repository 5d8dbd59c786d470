"""The embedded data set: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; nothing is downloaded."""

from __future__ import annotations

import torch

from surebound.data.dataset import Dataset, Part, stratified_split
from surebound.errors import DataError

SHARES = (0.7, 0.1, 0.2)
"""Training, validation, test."""


def load_digits(seed: int = 0) -> Dataset:
    """The digits with pixels in [0, 1] (the source counts 0..16), images [N, 1, 8, 8], split 70/10/20 by class.

    seed fixes the split and the order within each part. Raises DataError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits as source
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn "
            f"(or: pip install 'surebound[demo]'); {error}"
        ) from error
    pixels, digits = source(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.tensor(digits, dtype=torch.int64)
    train, validation, test = (
        Part(images[index], labels[index], index) for index in stratified_split(labels, SHARES, seed)
    )
    return Dataset("digits", train, validation, test, classes=10)
