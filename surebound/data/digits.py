"""The embedded data set: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; nothing is downloaded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from surebound.data.dataset import Dataset, Part, stratified_split
from surebound.data.files import PartName, Root
from surebound.data.raw import Raw
from surebound.errors import DataError

SHARES = (0.7, 0.1, 0.2)
"""Training, validation, test."""


def load_digits(seed: int = 0) -> Dataset:
    """The digits with pixels in [0, 1] (the source counts 0..16), images [N, 1, 8, 8], split 70/10/20 by class.

    seed fixes the split and the order within each part. Raises DataError without scikit-learn.
    """
    images, labels = _source()
    train, validation, test = (
        Part(images[index], labels[index], index) for index in stratified_split(labels, SHARES, seed)
    )
    return Dataset("digits", train, validation, test, classes=10)


def read_digits(root: Root, part: PartName) -> Raw:
    """The digits as one row of the table of data sets. Nothing is read from files.

    The source is not divided, so the test part is that of `load_digits(0)`, whatever seed is used for anything else,
    and the training part is the rest; both in the order of the source, whose positions are the indices.
    """
    images, labels = _source()
    train, validation, test = stratified_split(labels, SHARES, 0)
    chosen = np.sort((test if part == "test" else torch.cat([train, validation])).numpy())
    return Raw(labels.numpy()[chosen], 10, lambda positions: images.numpy()[chosen[positions]], chosen)


def _source() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] in [0, 1] and labels. Raises DataError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits as source
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn "
            f"(or: pip install 'surebound[demo]'); {error}"
        ) from error
    pixels, digits = source(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return images, torch.tensor(digits, dtype=torch.int64)
