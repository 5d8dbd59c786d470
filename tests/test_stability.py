"""How stable neurons are: by hand, with norms, lines and maxima."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from surebound.data.dataset import Part
from surebound.errors import DataError
from surebound.measures.stability import stability
from surebound.sparsify.graft import graft


def part(images: Tensor) -> Part:
    none = torch.zeros(len(images), dtype=torch.long)
    return Part(images, none, none)


def test_products_widths_and_fractions_by_hand() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2))
    network.get_parameter("1.weight").data = torch.tensor([[1.0, 0.0], [1.0, -1.0]])
    network.get_parameter("2.weight").data = torch.tensor([2.0, 0.5])
    network.get_buffer("2.running_mean").copy_(torch.tensor([0.5, 0.0]))
    network.get_buffer("2.running_var").fill_(1 - 1e-5)
    pixels = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).reshape(2, 1, 1, 2)
    (layer,) = stability(network.double().eval(), part(pixels.double()), 0.1).layers
    # before the norm [0.4, 0.6], [-0.2, 0.2] and [0.8, 1], [0.6, 1] (pixels stay within [0, 1]); the norm moves the
    # first by -0.5 and doubles it, and halves the second: [-0.2, 0.2], [-0.1, 0.1] and [0.6, 1], [0.3, 0.5]
    assert layer.neurons == 2 and layer.unstable == layer.crown == pytest.approx(0.5)
    assert layer.instability == pytest.approx((0.04 + 0.01 - 0.6 - 0.15) / 4, rel=1e-5)
    assert layer.before_norm == pytest.approx((-0.24 + 0.04 - 0.8 - 0.6) / 4, rel=1e-5)
    assert layer.width == pytest.approx((0.4 + 0.2 + 0.4 + 0.2) / 4, rel=1e-5)
    assert layer.width_before_norm == pytest.approx((0.2 + 0.4 + 0.2 + 0.4) / 4, rel=1e-5)


def test_lines_count_as_stable_and_maxima_are_no_neurons() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(),
        nn.Linear(5, 3),
    ).eval()  # fmt: skip
    images = torch.rand(4, 1, 4, 4)
    found = stability(network, part(images), 0.3)
    assert [layer.neurons for layer in found.layers] == [48, 5]
    assert found.mean("crown") <= found.mean("unstable") and found.mean("unstable") > 0
    masks = {"1": torch.ones(3, 4, 4, dtype=torch.bool)}
    grafted = stability(graft(network, masks), part(images), 0.3)
    assert grafted.layers[0].unstable == grafted.layers[0].crown == grafted.layers[0].instability == 0
    assert grafted.layers[0].width == pytest.approx(found.layers[0].width)
    with pytest.raises(DataError, match="there are none"):
        stability(network, part(images[:0]), 0.3)
