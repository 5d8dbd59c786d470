"""Every form of linear map is the array it stands for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import prod

import pytest
import torch
from torch import Tensor

from surebound.linear.maps import Dense, Diagonal, LinearMap, Rows, identity

G = 3
SHAPES = [(2, 3), (5,), (1,), (2, 1, 2), ()]


def dense(shape: tuple[int, ...]) -> tuple[LinearMap, Tensor]:
    value = torch.randn(G, 4, *shape, dtype=torch.float64)
    value[:, 1] = 0.0
    return Dense(value), value.clone()


def rows(shape: tuple[int, ...]) -> tuple[LinearMap, Tensor]:
    index, value = torch.randint(prod(shape), (G, 5)), torch.randn(G, 5, dtype=torch.float64)
    value[:, 2] = 0.0
    full = torch.zeros(G, 5, prod(shape), dtype=torch.float64)
    for g, s in itertools.product(range(G), range(5)):
        full[g, s, index[g, s]] = value[g, s]
    return Rows(index, value, shape), full.reshape(G, 5, *shape)


def diagonal(shape: tuple[int, ...]) -> tuple[LinearMap, Tensor]:
    entries = torch.randn(G, prod(shape), dtype=torch.float64)
    full = torch.zeros(G, prod(shape), prod(shape), dtype=torch.float64)
    for g, s in itertools.product(range(G), range(prod(shape))):
        full[g, s, s] = entries[g, s]
    return Diagonal(entries, shape), full.reshape(G, prod(shape), *shape)


FORMS: dict[str, Callable[[tuple[int, ...]], tuple[LinearMap, Tensor]]] = {
    "dense": dense,
    "rows": rows,
    "diagonal": diagonal,
}
form_and_shape = pytest.mark.parametrize(
    ("form", "shape"), list(itertools.product(FORMS, SHAPES)), ids=lambda v: v if isinstance(v, str) else str(list(v))
)


def factors(array: Tensor) -> dict[str, Tensor]:
    """Values to combine a map with: one for all groups and rows, per group, per row, and per both."""
    groups, count, *shape = array.shape
    leads = {"shared": (1, 1), "per group": (groups, 1), "per row": (1, count), "per both": (groups, count)}
    return {name: torch.randn(*lead, *shape, dtype=torch.float64) for name, lead in leads.items()}


def total(product: Tensor) -> Tensor:
    return product.reshape(*product.shape[:2], -1).sum(-1)


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@form_and_shape
def test_dense_is_the_array(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    close(a.dense(), array)
    assert a.rows == tuple(array.shape[:2])
    assert a.shape == shape
    assert a.dtype == torch.float64
    assert a.device == torch.device("cpu")


@form_and_shape
def test_dot_and_absdot(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    for v in factors(array).values():
        close(a.dot(v), total(array * v))
        close(a.absdot(v.abs()), total(array.abs() * v.abs()))


@form_and_shape
def test_signed_takes_one_value_where_positive_and_the_other_where_negative(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    up, down = array.clamp(min=0), array.clamp(max=0)
    for pos, neg in itertools.product(factors(array).values(), factors(array).values()):
        close(a.signed(pos, neg), total(up * pos + down * neg))


@form_and_shape
def test_signed_scale(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    up, down = array.clamp(min=0), array.clamp(max=0)
    for pos, neg in itertools.product(factors(array).values(), factors(array).values()):
        scaled = a.signed_scale(pos, neg)
        close(scaled.dense(), up * pos + down * neg)
        assert scaled.shape == shape
    same = factors(array)["per group"]
    close(a.signed_scale(same, same).dense(), array * same)


@form_and_shape
def test_signed_scale_broadcasts_over_the_value(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    pos, neg = (torch.randn(G, 1, *([1] * len(shape)), dtype=torch.float64) for _ in range(2))
    close(a.signed_scale(pos, neg).dense(), array.clamp(min=0) * pos + array.clamp(max=0) * neg)


@form_and_shape
def test_negated(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    close(a.negated().dense(), -array)
    close(a.negated().negated().dense(), array)


@form_and_shape
def test_take(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    for chosen in ([0], [array.shape[1] - 1, 0, 0]):
        index = torch.tensor(chosen, dtype=torch.long)
        taken = a.take(index)
        close(taken.dense(), array[:, index])
        assert taken.rows == (G, len(chosen))
        v = torch.randn(1, 1, *shape, dtype=torch.float64)
        close(taken.dot(v), total(array[:, index] * v))


@form_and_shape
def test_reshaped(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    for other in ((prod(shape),), (1, *shape), tuple(reversed(shape))):
        moved = a.reshaped(other)
        assert moved.shape == other
        close(moved.dense(), array.reshape(*array.shape[:2], *other))
        v = torch.randn(G, 1, *other, dtype=torch.float64)
        close(moved.dot(v), total(array.reshape(*array.shape[:2], *other) * v))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("forms", list(itertools.product(FORMS, FORMS)), ids="+".join)
def test_sum(forms: tuple[str, str], shape: tuple[int, ...]) -> None:
    (a, x), (b, y) = (FORMS[form](shape) for form in forms)
    count = min(x.shape[1], y.shape[1])
    first = torch.arange(count)
    close((a.take(first) + b.take(first)).dense(), x[:, :count] + y[:, :count])


@form_and_shape
def test_operations_leave_their_operands_alone(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    value = torch.randn(G, 1, *shape, dtype=torch.float64)
    other, kept = value.flip(0), value.clone()
    flipped = other.clone()
    for result in (a.signed_scale(value, other), a.negated(), a + a, a.take(torch.tensor([0])), a.reshaped(shape)):
        result.dot(value)
    a.signed(value, other)
    a.absdot(value)
    a.dense()
    close(a.dense(), array)
    close(value, kept)
    close(other, flipped)


@form_and_shape
def test_results_are_differentiable(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    pos, neg = (torch.randn(G, 1, *shape, dtype=torch.float64).requires_grad_() for _ in range(2))
    loss = a.signed(pos, neg).sum() + a.signed_scale(pos, neg).dense().sum()
    found = torch.autograd.grad(loss, [pos, neg])
    close(found[0], 2 * array.clamp(min=0).sum(1, keepdim=True))
    close(found[1], 2 * array.clamp(max=0).sum(1, keepdim=True))


def test_nbytes_counts_what_is_stored() -> None:
    assert Dense(torch.zeros(2, 3, 4, 5, dtype=torch.float64)).nbytes == 2 * 3 * 20 * 8
    assert Rows(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3), (100,)).nbytes == 6 * (8 + 4)
    assert Diagonal(torch.zeros(2, 100, dtype=torch.float32), (10, 10)).nbytes == 200 * 4


def test_identity() -> None:
    eye = identity(6, (2, 3), torch.float32)
    assert eye.rows == (1, 6)
    assert eye.dtype == torch.float32
    assert torch.equal(eye.dense().reshape(6, 6), torch.eye(6))
