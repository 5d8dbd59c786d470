"""Networks: published counts, and what holds for every row of the table."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surebound.bounds.crown import Ibp
from surebound.bounds.query import Query
from surebound.errors import UsageError
from surebound.graph.ir import evaluate
from surebound.graph.onnx_import import load_onnx
from surebound.graph.prepare import prepare
from surebound.graph.torch_export import trace
from surebound.nets.layers import Residual, Subsampled, Widened, conv, residual
from surebound.nets.normalise import IMAGES, Images, Normalise, images_of
from surebound.nets.table import NETWORKS, find_network
from surebound.regions import Box
from surebound.runs import Recipe, RunFolder, load_network
from surebound.sparsify.sites import relu_sites

PAGE = Path(__file__).parents[1] / "docs" / "networks.md"
TINY: dict[str, dict[str, Any]] = {
    "cnn7": {"width": 2},
    "cnn7l": {"width": 2},
    "cnn_a": {"width": 2},
    "cnn_b": {"width": 2},
    "convbig": {"width": 2},
    "densenet": {"growth": 2, "in_shape": [3, 8, 8]},
    "densenet_64": {"growth": 2, "in_shape": [3, 12, 12]},
    "digits_cnn": {"channels": [2, 3], "hidden": 5},
    "lenet5": {"in_shape": [1, 20, 20]},
    "lenet_300_100": {"width": 4},
    "mlp": {"hidden": [5, 4]},
    "mlp_64_64": {"width": 4},
    "mlp_8x200": {"width": 4},
    "mobilenet_v1": {"width": 1 / 32},
    "mobilenet_v2": {"width": 1 / 16},
    "resnet18": {"width": 2, "in_shape": [3, 16, 16]},
    "resnet18_nr": {"width": 2, "in_shape": [3, 16, 16]},
    "resnet32": {"width": 2, "in_shape": [3, 9, 9]},
    "resnet_2b": {"width": 2},
    "resnet_4b": {"width": 2},
    "resnext": {"width": 2, "in_shape": [3, 8, 8]},
    "resnext_64": {"width": 2, "in_shape": [3, 12, 12], "classes": 7},
    "vgg": {"width": 2},
    "wide_resnet": {"width": 1, "in_shape": [3, 8, 8]},
    "wide_resnet_64": {"width": 1, "in_shape": [3, 28, 28], "classes": 7},
}
DEEP = ("densenet_64", "mobilenet_v1", "mobilenet_v2", "resnet18", "resnet18_nr", "resnext_64")
"""Exporting takes seconds for these, and other rows have the same kinds of layers."""
SMALL = [pytest.param(Recipe.of(name, **arguments), id=name) for name, arguments in TINY.items()]
TRACED = [
    pytest.param(Recipe.of(name, **arguments), id=name, marks=[pytest.mark.slow] if name in DEEP else [])
    for name, arguments in TINY.items()
]
PUBLISHED = [
    ("mlp_8x200", {}, 400_210, 1_400),
    ("convbig", {"data": "mnist"}, 1_974_762, 48_064),
    ("convbig", {}, 2_466_858, 62_464),
    ("convbig", {"data": "svhn"}, 2_466_858, 62_464),
    ("cnn_a", {}, 214_918, 6_244),
    ("cnn_a", {"data": "mnist"}, 166_406, 4_804),
    ("cnn_b", {}, 2_118_856, 16_634),
    ("resnet_2b", {}, 112_006, 6_244),
    ("resnet_4b", {}, 123_734, 14_436),
    ("cnn7", {}, 17_192_650, 229_888),
    ("cnn7l", {}, 670_870, None),
    ("lenet_300_100", {}, 266_610, 400),
    ("lenet5", {}, 431_080, None),
    ("resnet18", {}, 11_173_962, None),
    ("resnet32", {}, 464_154, None),
    ("mobilenet_v2", {}, 2_296_922, None),
    ("mlp_64_64", {}, 784 * 64 + 64 + 64 * 64 + 64 + 650, 128),
]


def images_for(name: str, **arguments: Any) -> Images:
    """The images that a factory's network takes."""
    bound = inspect.signature(NETWORKS[name]).bind(**arguments)
    bound.apply_defaults()
    return images_of(*(bound.arguments[key] for key in ("data", "in_shape", "classes")))


def counts(name: str, **arguments: Any) -> tuple[int, int]:
    """Parameters and ReLU neurons, without holding either."""
    with torch.device("meta"):
        network = NETWORKS[name](**arguments)
        sites = relu_sites(network, torch.empty(1, *images_for(name, **arguments).shape))
    return sum(p.numel() for p in network.parameters()), sum(map(math.prod, sites.values()))


def pixels(recipe: Recipe, count: int = 2) -> Tensor:
    name = recipe.factory.split(":")[1]
    shape = images_for(name, **recipe.arguments).shape
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize(("name", "arguments", "parameters", "neurons"), PUBLISHED)
def test_published_counts(name: str, arguments: dict[str, Any], parameters: int, neurons: int | None) -> None:
    found = counts(name, **arguments)
    assert found == (parameters, found[1] if neurons is None else neurons)


def test_layers_of_the_papers() -> None:
    assert [m.in_features for m in NETWORKS["cnn7l"]().modules() if isinstance(m, nn.Linear)] == [2048, 100]
    gray = NETWORKS["cnn7l"](data="fashion-mnist")
    assert [m.in_features for m in gray.modules() if isinstance(m, nn.Linear)] == [1152, 100]
    with torch.device("meta"):
        tiny = NETWORKS["cnn7"](data="tiny-imagenet", in_shape=(3, 56, 56), last_stride=2)
        kinds = {name: [type(m) for m in NETWORKS[name]().modules()] for name in ("vgg", "resnet32", "resnet18_nr")}
    assert tiny[17].in_features == 128 * 14 * 14 and tiny[-1].out_features == 200
    assert [(kind.count(nn.Conv2d), kind.count(nn.Linear)) for kind in kinds.values()] == [(12, 2), (31, 1), (17, 1)]


@pytest.mark.parametrize("name", ["resnet_2b", "resnet_4b"])
def test_the_networks_of_vnncomp_take_the_weights_of_its_files(bench: Path, name: str) -> None:
    graph = load_onnx(bench / "cifar10_resnet" / "onnx" / f"{name}.onnx.gz")
    network, given = NETWORKS[name]()[1:].double().eval(), list(graph.values(torch.float64).values())
    own = list(network.parameters())
    assert [value.shape for value in given] == [value.shape for value in own]
    for value, new in zip(own, given, strict=True):
        value.data = new
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    found = evaluate(graph, graph.values(torch.float64), x[:, None])[graph.output.name]
    with torch.no_grad():
        assert torch.allclose(found.flatten(1), network(x))


def test_the_document_lists_every_network_with_its_counts() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \| ([\d,]+) \|$", PAGE.read_text(), re.MULTILINE)
    written = {name: (int(p.replace(",", "")), int(n.replace(",", ""))) for name, p, n in rows}
    assert written == {name: counts(name) for name in sorted(NETWORKS)}


# ---------------------------------------------------------------- every network


def test_every_network_has_a_small_version_here() -> None:
    assert set(TINY) == set(NETWORKS)


@pytest.mark.parametrize("recipe", SMALL)
def test_outputs_are_finite_logits_and_the_mean_image_is_zero_behind_the_normalisation(recipe: Recipe) -> None:
    network, x = recipe.build().eval(), pixels(recipe)
    name = recipe.factory.split(":")[1]
    images = images_for(name, **recipe.arguments)
    with torch.no_grad():
        logits = network(x)
        mean = torch.tensor(images.mean).reshape(-1, 1, 1).expand(images.shape)
        assert isinstance(network[0], Normalise) and not network[0](mean).any()
    assert logits.shape == (2, images.classes) and bool(torch.isfinite(logits).all())
    assert sum(isinstance(m, nn.ReLU) for m in network.modules()) == len(relu_sites(network, x))


@pytest.mark.parametrize("recipe", SMALL)
def test_the_seed_decides_the_weights_and_the_global_random_state_stays(recipe: Recipe) -> None:
    state = torch.get_rng_state()
    first, again = recipe.build(), recipe.build()
    other = Recipe(recipe.factory, {**recipe.arguments, "seed": 1}).build()
    assert torch.equal(state, torch.get_rng_state())
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert all(not torch.equal(a, c) for a, _, c in pairs if a.dim() > 1)


@pytest.mark.parametrize("recipe", TRACED)
def test_it_traces_and_interval_bounds_hold(recipe: Recipe) -> None:
    network, x = recipe.build().eval(), pixels(recipe, 1)
    graph = prepare(trace(network, x))
    eps = 0.01
    box = Box((x - eps).double(), (x + eps).double())
    rows = torch.eye(graph.output.numel, dtype=torch.float64)
    query = Query(graph, graph.values(torch.float64), {graph.input.name: box}, torch.cat([rows, -rows])[None])
    lower, negated = Ibp().bound(query).lower.chunk(2, dim=1)
    upper = -negated
    with torch.no_grad():
        logits = network.double()(x.double() + eps * (2 * torch.rand(20, *x.shape[1:]).double() - 1))
    assert bool(torch.isfinite(lower).all()) and bool(torch.isfinite(upper).all())
    assert bool((lower <= logits + 1e-9).all()) and bool((logits <= upper + 1e-9).all())


@pytest.mark.parametrize("recipe", SMALL)
def test_a_run_folder_gives_it_back(recipe: Recipe, tmp_path: Path) -> None:
    network, x = Recipe(recipe.factory, {**recipe.arguments, "seed": 3}).build().eval(), pixels(recipe)
    RunFolder.create(tmp_path).save_network(network, recipe)
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path)(x), network(x))


# ---------------------------------------------------------------- blocks


def test_blocks_by_hand() -> None:
    x = torch.rand(2, 3, 5, 4)
    body = nn.Conv2d(3, 3, 1)
    assert torch.equal(Residual(body, nn.Identity())(x), body(x) + x)
    assert torch.equal(Widened(body)(x), torch.cat([body(x), x], 1))
    short = Subsampled(2, 1, 2)(x)
    assert short.shape == (2, 6, 3, 2) and torch.equal(short[:, 1:4], x[:, :, ::2, ::2])
    assert not short[:, 0].any() and not short[:, 4:].any()


def test_residual_blocks_are_relu_of_body_plus_shortcut() -> None:
    network = NETWORKS["resnet_4b"](width=2).eval()
    x = torch.rand(2, 4, 8, 8)
    block = network[5]
    first, _, second = block.body
    assert isinstance(network[6], nn.ReLU) and isinstance(block.shortcut, nn.Identity)
    assert torch.equal(block(x), second(torch.relu(first(x))) + x)
    assert isinstance(network[7].shortcut[0], nn.Conv2d) and network[7].shortcut[0].kernel_size == (1, 1)


# ---------------------------------------------------------------- images and messages


def test_other_images() -> None:
    known = IMAGES["cifar10"]
    assert images_of("cifar10", [3, 28, 28], 7) == Images((3, 28, 28), 7, known.mean, known.std)
    plain = NETWORKS["mlp"](hidden=(), data=None, in_shape=(2, 3, 3), classes=4).eval()
    x = torch.rand(5, 2, 3, 3)
    assert torch.equal(plain[0](x), x) and plain(x).shape == (5, 4)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown network 'cnn8'; give one of cnn7, cnn7l"):
        find_network("cnn8")
    with pytest.raises(UsageError, match="no normalisation is known for 'cifar'; give one of digits, mnist"):
        images_of("cifar")
    with pytest.raises(UsageError, match=r"needs in_shape=\(C, H, W\) and classes"):
        images_of(None)
    with pytest.raises(UsageError, match=r"have 1 channels, but in_shape is \(3, 28, 28\)"):
        images_of("mnist", (3, 28, 28))
    with pytest.raises(UsageError, match=r"classes >= 1, got \(1, 28, 28\) and 0"):
        images_of("mnist", classes=0)
    with pytest.raises(UsageError, match="too small for this network: a window of 2 x 2 does not fit into 1 x 1"):
        NETWORKS["vgg"](in_shape=(3, 16, 16))
    with pytest.raises(UsageError, match=r"sum have shapes \(3, 8, 8\) and \(2, 8, 8\)"):
        residual([conv(3)])((2, 8, 8))
