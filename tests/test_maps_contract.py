"""Every form of linear map is the array it stands for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import prod

import pytest
import torch
from torch import Tensor

from surebound.linear import cached
from surebound.linear.conv import Shape, conv_transpose
from surebound.linear.maps import Columns, Dense, LinearMap, Rows, identity
from surebound.linear.patches import Anchors, Patches, Windows
from surebound.linear.relaxed import Relaxed, relaxed
from surebound.ops.record import Lines

G = 3
SHAPES = [(2, 3), (5,), (1,), (2, 1, 2), (2, 4, 5), (3, 1, 1), ()]


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


def eye(shape: tuple[int, ...]) -> tuple[LinearMap, Tensor]:
    count = prod(shape)
    entries = torch.randn(G, count, dtype=torch.float64)
    made = Rows(torch.arange(count).expand(G, count), entries, shape)
    return made, torch.diag_embed(entries).reshape(G, count, *shape)


def columns(shape: tuple[int, ...]) -> tuple[LinearMap, Tensor]:
    """Every group has entries of its own, three or as many as there are."""
    index = torch.rand(G, prod(shape)).argsort(1)[:, :3]
    value = torch.randn(G, 4, index.shape[1], dtype=torch.float64)
    value[:, 2] = 0.0
    full = torch.zeros(G, 4, prod(shape), dtype=torch.float64)
    for g, k in itertools.product(range(G), range(index.shape[1])):
        full[g, :, index[g, k]] = value[g, :, k]
    return Columns(index, value, shape), full.reshape(G, 4, *shape)


def windows(shape: tuple[int, ...]) -> tuple[LinearMap, Tensor]:
    """Windows of 3 x 2 that hang over all edges, from a grid of 2 x 3 neurons of 4 channels."""
    anchors = Anchors(torch.randint(24, (G, 7)), (2, 3))
    where = Windows(anchors, shape, size=(3, 2), stride=(3, 2), offset=(-1, -1))
    coefficients = torch.zeros(G, 7, shape[0], 3, 2, dtype=torch.float64)
    full = torch.zeros(G, 7, *shape, dtype=torch.float64)
    for g, s in itertools.product(range(G), range(7)):
        down, across = divmod(int(anchors.index[g, s]) % 6, 3)
        for i, j in itertools.product(range(3), range(2)):
            y, x = down * 3 - 1 + i, across * 2 - 1 + j
            if s != 2 and 0 <= y < shape[1] and 0 <= x < shape[2]:
                coefficients[g, s, :, i, j] = full[g, s, :, y, x] = torch.randn(shape[0], dtype=torch.float64)
    return Patches(coefficients, where), full


FORMS: dict[str, Callable[[tuple[int, ...]], tuple[LinearMap, Tensor]]] = {
    "dense": dense,
    "rows": rows,
    "one row per entry": eye,
    "columns": columns,
    "windows": windows,
}


def fits(form: str, shape: tuple[int, ...]) -> bool:
    """Windows are of feature maps."""
    return form != "windows" or len(shape) == 3


form_and_shape = pytest.mark.parametrize(
    ("form", "shape"),
    [case for case in itertools.product(FORMS, SHAPES) if fits(*case)],
    ids=lambda v: v if isinstance(v, str) else str(list(v)),
)


def factors(array: Tensor) -> dict[str, Tensor]:
    """Values to combine a map with: one for all groups and rows, per group, per row, and per both."""
    groups, count, *shape = array.shape
    leads = {"shared": (1, 1), "per group": (groups, 1), "per row": (1, count), "per both": (groups, count)}
    return {name: torch.randn(*lead, *shape, dtype=torch.float64) for name, lead in leads.items()}


def total(product: Tensor) -> Tensor:
    return product.reshape(*product.shape[:2], -1).sum(-1)


def lines_at(a: LinearMap, low: Tensor, below: Tensor | None, high: Tensor, above: Tensor | None) -> Lines:
    """Lines of a node on the support of a map over it."""
    return Lines(a.at(low), None if below is None else a.at(below), a.at(high), None if above is None else a.at(above))


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
def test_relaxed_takes_one_line_where_positive_and_the_other_where_negative(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    up, down = array.clamp(min=0), array.clamp(max=0)
    for low, high in itertools.product(factors(array).values(), factors(array).values()):
        for below, above in ((low.flip(-1), high.flip(-1)), (None, high), (low, None), (None, None)):
            lines = lines_at(a, low, below, high, above)
            rows, constant = relaxed(a, lines)
            close(rows.dense(), up * low + down * high)
            terms = [half * part for half, part in ((up, below), (down, above)) if part is not None]
            close(constant, total(torch.stack([torch.zeros_like(array), *terms]).sum(0)))


@form_and_shape
def test_gradients_through_relaxed_are_those_of_its_formula(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    leaves = [value.requires_grad_() for value in factors(array).values()]
    weight, price = torch.randn_like(array), torch.randn(array.shape[:2], dtype=torch.float64)
    for below, above in itertools.product((leaves[1], None), (leaves[3], None)):
        lines = lines_at(a, leaves[0], below, leaves[2], above)
        held = a.coefficients.clone().requires_grad_()
        rows, constant = relaxed(a.holding(held), lines)
        used = [held, *(value for value in (leaves[0], below, leaves[2], above) if value is not None)]
        found = torch.autograd.grad((rows.dense() * weight).sum() + (constant * price).sum(), used)
        up, down = a.holding(held.clamp(min=0)).dense(), a.holding(held.clamp(max=0)).dense()
        wanted_rows = up * leaves[0] + down * leaves[2]
        terms = [half * part for half, part in ((up, below), (down, above)) if part is not None]
        wanted = (wanted_rows * weight).sum() + sum((total(term) * price).sum() for term in terms)
        for ours, theirs, of in zip(found, torch.autograd.grad(wanted, used), used, strict=True):
            differs = (ours - theirs) * ((of != 0) if of is held else 1)
            assert float(differs.abs().max()) <= 1e-12


@form_and_shape
def test_scaled(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    for factor in factors(array).values():
        close(a.scaled(factor).dense(), array * factor)
        assert a.scaled(factor).shape == shape
    broadcast = torch.randn(G, 1, *([1] * len(shape)), dtype=torch.float64)
    close(a.scaled(broadcast).dense(), array * broadcast)


@form_and_shape
def test_at_reads_the_entries_that_the_coefficients_belong_to(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    for value in factors(array).values():
        support = a.at(value).expand(a.coefficients.shape)
        close((support * a.coefficients).reshape(*a.rows, -1).sum(-1), total(array * value))
        close(a.holding(support.clone()).dense() * (array != 0), value.expand_as(array) * (array != 0))


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


@form_and_shape
def test_pick(form: str, shape: tuple[int, ...]) -> None:
    """Some groups, and of each its own rows."""
    a, array = FORMS[form](shape)
    last = array.shape[1] - 1
    groups, chosen = torch.tensor([[2], [0]]), torch.tensor([[0, last, 0], [last, 0, last]])
    picked = a.pick(groups, chosen)
    close(picked.dense(), array[groups, chosen])
    assert picked.rows == (2, 3)
    v = torch.randn(2, 1, *shape, dtype=torch.float64)
    close(picked.dot(v), total(array[groups, chosen] * v))


@pytest.mark.parametrize(
    ("forms", "shape"),
    [
        (forms, shape)
        for forms, shape in itertools.product(itertools.product(FORMS, FORMS), SHAPES)
        if all(fits(form, shape) for form in forms)
    ],
    ids=lambda v: "+".join(v) if v and isinstance(v[0], str) else str(list(v)),
)
def test_sum(forms: tuple[str, str], shape: tuple[int, ...]) -> None:
    (a, x), (b, y) = (FORMS[form](shape) for form in forms)
    count = min(x.shape[1], y.shape[1])
    first = torch.arange(count)
    close((a.take(first) + b.take(first)).dense(), x[:, :count] + y[:, :count])


@form_and_shape
def test_operations_leave_their_operands_alone(form: str, shape: tuple[int, ...]) -> None:
    a, array = FORMS[form](shape)
    value = torch.randn(G, 1, *shape, dtype=torch.float64)
    kept = value.clone()
    lines = Lines(*[a.at(value)] * 4)
    for result in (relaxed(a, lines)[0], a.scaled(value), a.negated(), a + a, a.take(torch.tensor([0]))):
        result.dot(value)
    a.reshaped(shape).absdot(value)
    a.dense()
    close(a.dense(), array)
    close(value, kept)


def test_nbytes_counts_what_is_stored() -> None:
    assert Dense(torch.zeros(2, 3, 4, 5, dtype=torch.float64)).nbytes == 2 * 3 * 20 * 8
    assert Rows(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3), (100,)).nbytes == 6 * 4


def test_rows_of_the_same_neurons_stay_rows() -> None:
    index = torch.randint(6, (G, 4))
    a, b = (Rows(index, torch.randn(G, 4, dtype=torch.float64), (2, 3)) for _ in range(2))
    assert isinstance(a + b, Rows)
    close((a + b).dense(), a.dense() + b.dense())
    assert isinstance(a + Rows(index.clone(), b.coefficients, (2, 3)), Dense)


def test_columns_of_the_same_entries_stay_columns() -> None:
    index = torch.rand(G, 6).argsort(1)[:, :4]
    a, b = (Columns(index, torch.randn(G, 5, 4, dtype=torch.float64), (2, 3)) for _ in range(2))
    assert isinstance(a + b, Columns)
    close((a + b).dense(), a.dense() + b.dense())
    assert isinstance(a + Columns(index.clone(), b.coefficients, (2, 3)), Dense)


def test_identity() -> None:
    eye = identity(6, (2, 3), torch.float32)
    assert eye.rows == (1, 6)
    assert eye.dtype == torch.float32
    assert torch.equal(eye.dense().reshape(6, 6), torch.eye(6))


# ---------------------------------------------------------------- element-wise work in pieces


@pytest.mark.parametrize("piece", [1, 7, 30, 1 << 19])
@pytest.mark.parametrize("shared", [(), (0,), (1,), (0, 1), (2,)])
def test_relaxing_in_pieces_is_relaxing_at_once(
    piece: int, shared: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients do not depend on the size of a piece, whatever lines groups, rows or entries share."""
    monkeypatch.setattr(cached, "AT_ONCE", piece)
    random = torch.Generator().manual_seed(3)
    whole = (3, 4, 2, 5)
    narrow = tuple(1 if axis in shared else size for axis, size in enumerate(whole))
    a, *lines = (
        torch.randn(shape, dtype=torch.float64, generator=random).requires_grad_() for shape in (whole, *[narrow] * 4)
    )
    assert torch.autograd.gradcheck(Relaxed.apply, (a, *lines))
    ls, li, us, ui = lines
    out, constant = Relaxed.apply(a, *lines)  # type: ignore[misc]
    up, down = a.clamp(min=0), a.clamp(max=0)
    assert torch.allclose(out, up * ls + down * us) and torch.allclose(constant, (up * li + down * ui).sum((2, 3)))
    few = torch.randn(narrow, dtype=torch.float64, generator=random).requires_grad_()
    wide = torch.randn(whole, dtype=torch.float64, generator=random).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: Relaxed.apply(x, y, None, y, None)[0], (few, wide))


@pytest.mark.parametrize("channels", [1, 9])
@pytest.mark.parametrize("biased", [True, False])
def test_a_transposed_convolution_has_the_gradient_of_rows_weight_and_bias(channels: int, biased: bool) -> None:
    """Few channels go by blocks, many by the library's transpose."""
    random = torch.Generator().manual_seed(4)
    rows, weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=random).requires_grad_()
        for shape in ((2, 3, 3, 3), (3, channels, 3, 3), (3,))
    )
    shape = Shape((2, 2), (1, 1), (1, 1), 1, (5, 6))
    given = (rows, weight, bias if biased else None)
    pulled, added = conv_transpose(*given, shape)
    x = torch.randn(2, channels, 5, 6, dtype=torch.float64, generator=random)
    out = torch.nn.functional.conv2d(x, weight, given[2], 2, 1)
    assert torch.allclose((pulled * x).flatten(1).sum(1) + added, (rows * out).flatten(1).sum(1))
    assert torch.autograd.gradcheck(lambda *leaves: conv_transpose(*leaves, shape), given)


def test_pieces_cover_a_value_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for piece in (1, 6, 24, 25, 1000):
        monkeypatch.setattr(cached, "AT_ONCE", piece)
        for shape in ((5, 7, 3), (1, 9), (4, 1, 2, 2), (0, 3, 2)):
            counted = torch.zeros(shape)
            for at in cached.cached(counted):
                counted[at] += 1
                assert counted[at].numel() <= max(piece, counted[:1, :1].numel())
            assert bool((counted == 1).all())
