"""Products with fixed weights that are mostly zeros.

Only weights that were made known as fixed are looked at: a search's weights do not change while it runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

MOST, LEAST = 0.05, 1 << 16
"""Matrices of at least LEAST entries of which at most the part MOST is not zero are multiplied as sparse ones (measured
in docs/decisions.md).
"""

_transposed = WeakTensorKeyDictionary()


def know_fixed(weights: Iterable[Tensor]) -> None:
    """Products with those of these weights that are sparse matrices will be sparse for as long as they live."""
    for weight in weights:
        if weight.dim() == 2 and weight.numel() >= LEAST and weight.count_nonzero() <= MOST * weight.numel():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
                _transposed[weight] = weight.detach().t().to_sparse_csr()


def is_sparse(weight: Tensor) -> bool:
    """Was it made known as fixed, and is it sparse?"""
    return weight in _transposed


def times(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [..., m] @ weight [m, n]."""
    if weight not in _transposed:
        return rows @ weight
    flat = rows.reshape(-1, rows.shape[-1])
    return (_transposed[weight] @ flat.t()).t().reshape(*rows.shape[:-1], weight.shape[1])
