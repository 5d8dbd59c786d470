"""Initial weights for certified training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from surebound.errors import UsageError
from surebound.nets.cnn import cnn7
from surebound.nets.mlp import mlp
from surebound.nets.resnet import resnet_4b
from surebound.training.initial import ibp_initial, weights_of

GRAY = torch.full((1, 1, 28, 28), 0.5)


def half_widths(network: nn.Sequential, x: Tensor, eps: float) -> list[float]:
    """Mean half-width of the interval boxes behind each linear layer."""
    lower, upper = x - eps, x + eps
    found = []
    for module in network:
        if isinstance(module, nn.Linear):
            centre, radius = (upper + lower) / 2, (upper - lower) / 2
            centre, radius = module(centre), radius @ module.weight.abs().T
            lower, upper = centre - radius, centre + radius
            found.append(float(radius.mean()))
        else:
            lower, upper = module(lower), module(upper)
    return found


def test_a_layer_doubles_boxes_and_a_relu_halves_them_so_depth_does_not_matter() -> None:
    network = mlp((512,) * 8)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.bias.zero_()
        widths = half_widths(ibp_initial(network, GRAY), GRAY, 0.1)
        usual = half_widths(network, GRAY, 0.1)
    assert widths[0] / 0.1 == pytest.approx(2, rel=0.02)
    ratios = [after / before for before, after in zip(widths[:7], widths[1:8], strict=True)]
    assert all(0.8 < ratio < 1.2 for ratio in ratios)
    assert usual[7] / usual[0] > 1e3


def test_standard_deviations_and_what_stays() -> None:
    network = cnn7(data="mnist", width=8)
    result = ibp_initial(network, GRAY)
    *drawn, last = weights_of(network)
    for name in drawn:
        weight = result.get_parameter(name).detach()
        assert float(weight.std() * weight[0].numel()) == pytest.approx(math.sqrt(2 * math.pi), rel=0.2)
        assert abs(float(weight.mean())) < 5 * float(weight.std()) / math.sqrt(weight.numel())
    before, after = network.state_dict(), result.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == drawn and last not in changed and len(drawn) == 6


def test_layers_fed_by_a_residual_sum_get_half() -> None:
    network = resnet_4b(width=16)
    result = ibp_initial(network, torch.rand(1, 3, 32, 32))
    scaled = {
        name: float(weight.std() * weight[0].numel()) / math.sqrt(2 * math.pi)
        for name, weight in result.state_dict().items()
        if name in weights_of(network)[:-1]
    }
    halved = [name for name, share in scaled.items() if share < 0.75]
    assert halved == ["5.body.0.weight", "7.body.0.weight", "7.shortcut.0.weight", "9.body.0.weight", "12.weight"]
    assert all(share == pytest.approx(0.5 if name in halved else 1, rel=0.1) for name, share in scaled.items())


def test_the_seed_decides_and_neither_network_mode_nor_random_state_change() -> None:
    network, state = mlp((4, 4)).train(), torch.get_rng_state()
    first, again, other = (ibp_initial(network, GRAY, seed) for seed in (0, 0, 1))
    assert torch.equal(first[2].weight, again[2].weight) and not torch.equal(first[2].weight, other[2].weight)
    assert torch.equal(state, torch.get_rng_state()) and network.training and first.training


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(UsageError, match="no weights with more than one axis"):
        ibp_initial(nn.Sequential(nn.Flatten(), nn.ReLU()), GRAY)
