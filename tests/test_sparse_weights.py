"""Weights that are mostly zeros: the same products, in every place that makes them."""

from __future__ import annotations

import gc

import pytest
import torch
from nets import Builder
from torch import Tensor

from surebound.bounds.alpha import AlphaCrown
from surebound.bounds.crown import BY_WALK, Tighten, boxes_of, walked_lower
from surebound.bounds.memory import Memory
from surebound.linear import sparse
from surebound.linear.maps import Dense
from surebound.properties import robust
from surebound.search.problem import problem
from surebound.search.roots import roots_of


def weight(dtype: torch.dtype, filled: float = 0.02, rows: int = 300) -> Tensor:
    """A matrix [rows, 400] with a given part of entries that are not zero."""
    generator = torch.Generator().manual_seed(1)
    full = torch.randn(rows, 400, generator=generator, dtype=torch.float64)
    return (full * (torch.rand(rows, 400, generator=generator) < filled)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [(), (7,), (1,), (3, 5), (2, 0)])
def test_products_and_gradients_are_the_dense_ones(lead: tuple[int, ...], dtype: torch.dtype) -> None:
    known = weight(dtype)
    sparse.know_fixed([known])
    assert sparse.is_sparse(known)
    rows = torch.randn(*lead, 300, dtype=dtype, requires_grad=True)
    found, wanted = sparse.times(rows, known), rows @ known.clone()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert found.shape == wanted.shape and torch.allclose(found, wanted, atol=tolerance)
    direction = torch.randn_like(wanted)
    (of_found,) = torch.autograd.grad((found * direction).sum(), rows)
    (of_wanted,) = torch.autograd.grad((wanted * direction).sum(), rows)
    assert torch.allclose(of_found, of_wanted, atol=tolerance)


def test_only_large_and_empty_enough_matrices_are_kept_as_sparse_ones() -> None:
    full, small, bias = weight(torch.float64, 0.5), weight(torch.float64)[:10].clone(), torch.zeros(1 << 17)
    sparse.know_fixed([full, small, bias])
    assert not any(map(sparse.is_sparse, (full, small, bias)))


def test_what_is_kept_goes_with_the_weight() -> None:
    before = len(sparse._transposed)
    known = weight(torch.float64)
    sparse.know_fixed([known])
    assert len(sparse._transposed) == before + 1
    del known
    gc.collect()
    assert len(sparse._transposed) == before


@pytest.mark.parametrize("optimised", [False, True])
def test_bounds_are_those_with_dense_products(optimised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pruned network bounded by CROWN and by alpha-CROWN, whose steps need gradients."""
    b = Builder(3)
    x = b.input(20)
    for size in (300, 400, 260, 3):
        x = b.linear(b.op("relu", x) if size < 300 or size == 400 else x, size)
    graph = b.graph(x)
    for name, tensor in graph.parameters().items():
        if tensor.dim() == 2 and tensor.numel() >= sparse.LEAST:
            tensor *= torch.rand(tensor.shape, generator=torch.Generator().manual_seed(len(name))) < 0.03
    roots = roots_of([robust(torch.zeros(20, dtype=torch.float64), 0, 0.2, 3)], graph.input.shape)
    found = []
    for most in (sparse.MOST, -1.0):
        monkeypatch.setattr(sparse, "MOST", most)
        of = problem(graph, roots, torch.float64, Memory())
        assert sum(map(sparse.is_sparse, of.values[torch.float64].values())) == (2 if most > 0 else 0)
        ctx = of.context(of.roots.region, torch.float64)
        method = Tighten(AlphaCrown(3).tighten, lambda ctx, name: 1) if optimised else BY_WALK
        boxes = boxes_of(ctx, {}, (method,))
        rows = Dense(of.spec(torch.zeros(1, dtype=torch.long), torch.float64))
        found.append(walked_lower(ctx, boxes, of.output, rows))
    assert torch.allclose(found[0], found[1], rtol=1e-10, atol=1e-12)
