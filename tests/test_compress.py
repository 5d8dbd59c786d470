"""Compression: every step keeps the outputs and takes what it should."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from surebound.cli.app import app
from surebound.errors import ModelError, TraceMismatch, UsageError
from surebound.graph.ir import Graph, evaluate
from surebound.graph.onnx_import import load_onnx
from surebound.graph.torch_export import trace
from surebound.loop.compress import FACTORY
from surebound.nets.cnn import cnn7l, cnn_b, lenet5
from surebound.nets.from_graph import described, module_of
from surebound.nets.grafted import GraftedReLU
from surebound.nets.resnet import resnet18, resnet_2b
from surebound.nets.small import digits_cnn
from surebound.runs import Recipe, RunFolder, load_network
from surebound.sparsify.compress import run as steps
from surebound.sparsify.compress.channels import groups_of
from surebound.sparsify.compress.frozen import Frozen, points_of, require_equal
from surebound.sparsify.compress.run import Compressed, compress
from surebound.sparsify.graft import graft
from surebound.sparsify.layers import channels, weights
from surebound.sparsify.masks import mask_weights, unmasked
from surebound.sparsify.sites import relu_sites


def warmed(network: nn.Module, example: Tensor) -> nn.Module:
    """Norms with statistics, scales and shifts that are not those of the beginning."""
    generator = torch.Generator().manual_seed(1)
    for part in network.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.BatchNorm1d)):
            for value, low, high in (
                (part.weight.data, 0.5, 1.5),
                (part.bias.data, -0.5, 0.5),
                (part.get_buffer("running_mean"), -0.3, 0.3),
                (part.get_buffer("running_var"), 0.5, 2.0),
            ):
                value.uniform_(low, high, generator=generator)
    return network.eval()


def same(network: nn.Module, graph: Graph, x: Tensor) -> None:
    found = evaluate(graph, graph.values(torch.float32), x.reshape(len(x), *graph.input.shape))[graph.output.name]
    expected = network(x).detach()
    assert torch.allclose(found.reshape(expected.shape), expected, atol=1e-5 * max(1.0, float(expected.abs().max())))


def widths(graph: Graph) -> list[int]:
    """Output channels of all layers, in order."""
    return [graph[node.inputs[1]].shape[0] for node in graph if node.op in ("conv2d", "linear")]


def thinned(network: nn.Module, example: Tensor, layers: str = "conv") -> tuple[nn.Module, list[int]]:
    """Channels masked as channel pruning does it, and how many are left of each layer that has any."""
    generator = torch.Generator().manual_seed(2)
    masks: dict[str, Tensor] = {}
    left: list[int] = []
    for of in channels(network, example, layers).values():
        kept = torch.rand(of.size, generator=generator) < 0.5
        kept[0] = True
        left.append(int(kept.sum()))
        masks |= of.masks(network, kept, {})
    return unmasked(mask_weights(network, masks)).eval(), left


# ---------------------------------------------------------------- norms


@pytest.mark.parametrize("factory", [cnn7l, pytest.param(resnet18, marks=pytest.mark.slow)])
def test_norms_are_folded(factory) -> None:
    x = torch.rand(3, 3, 32, 32)
    network = warmed(factory(width=4), x)
    found = compress(trace(network, x))
    assert not any(node.op == "batch_norm" for node in found.graph)
    assert found.steps[1].parameters < found.steps[0].parameters
    same(network, found.graph, x)


def test_norms_that_stand_elsewhere_stay() -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(72, 2)

        def forward(self, x: Tensor) -> Tensor:
            made = self.conv(x)
            return self.last((self.norm(made) + made).relu().flatten(1))

    x = torch.rand(2, 1, 8, 8)
    network = warmed(Before(), x)
    found = compress(trace(network, x))
    assert [node.op for node in found.graph].count("batch_norm") == 1
    same(network, found.graph, x)


# ---------------------------------------------------------------- channels


@pytest.mark.parametrize(
    ("factory", "data"),
    [pytest.param(cnn7l, "cifar10", marks=pytest.mark.slow), (cnn_b, "cifar10"), (lenet5, "mnist")],
)
def test_pruned_channels_leave_sequential_networks(factory, data: str) -> None:
    x = torch.rand(3, *((1, 28, 28) if data == "mnist" else (3, 32, 32)))
    network, left = thinned(warmed(factory(data=data), x), x, layers="all")
    found = compress(trace(network, x))
    assert widths(found.graph) == [*left, 10]
    same(network, found.graph, x)


@pytest.mark.parametrize("factory", [resnet_2b, pytest.param(resnet18, marks=pytest.mark.slow)])
def test_pruned_channels_inside_blocks_leave_residual_networks(factory) -> None:
    x = torch.rand(2, 3, 32, 32)
    network, left = thinned(warmed(factory(width=4), x), x)
    whole = widths(compress(trace(warmed(factory(width=4), x), x)).graph)
    found = widths(compress(trace(network, x)).graph)
    assert sum(found) < sum(whole) and all(a <= b for a, b in zip(found, whole, strict=True))
    assert set(left) & {a for a, b in zip(found, whole, strict=True) if a < b}
    same(network, compress(trace(network, x)).graph, x)


def test_channels_of_a_residual_sum_go_where_all_of_it_is_constant() -> None:
    x = torch.rand(2, 3, 32, 32)
    network = resnet_2b(width=4).eval()
    dead = [1, 3, 4]
    for part in network.modules():
        if isinstance(part, nn.Conv2d) and part.out_channels == 8:
            part.weight.data[dead] = 0
            assert part.bias is not None
            part.bias.data[dead] = 0.25
    found = compress(trace(network, x))
    assert [width for width in widths(found.graph) if width == 8] == [] and widths(found.graph).count(5) >= 4
    same(network, found.graph, x)


def test_constants_other_than_zero_go_into_biases_and_at_borders_into_a_map() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(),
        nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    network.get_parameter("0.weight").data[1] = 0
    network.get_parameter("0.bias").data[1] = 0.75
    network.get_parameter("2.weight").data[0] = 0
    network.get_parameter("2.bias").data[0] = 0.5
    x = torch.rand(4, 1, 6, 6)
    found = compress(trace(network.eval(), x))
    same(network, found.graph, x)
    assert widths(found.graph) == [2, 1, 2, 3]
    assert [node.op for node in found.graph if node.batched].count("add") == 1


def test_neurons_that_are_off_on_the_whole_domain_are_constant_there_only() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    network.get_parameter("1.weight").data = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -2.0]])
    network.get_parameter("1.bias").data = torch.tensor([0.0, -1.5, -0.5])
    x = torch.rand(8, 1, 1, 2)
    found = compress(trace(network, x))
    assert widths(found.graph) == [1, 2]
    same(network, found.graph, x)
    assert widths(compress(trace(network, x), -3.0, 3.0).graph) == [3, 2]
    with pytest.raises(UsageError, match=r"got \[1.0, 1.0\]"):
        compress(trace(network, x), 1.0, 1.0)


@pytest.mark.parametrize("domain", [(0.0, float("inf")), (float("-inf"), float("inf")), (0.0, float("nan"))])
def test_a_domain_without_ends_is_refused(domain: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="the domain of inputs must have an end above its beginning"):
        compress(trace(digits_cnn(0).eval(), torch.rand(2, 1, 8, 8)), *domain)


def test_a_file_is_compressed_like_the_module_it_was_written_from(tmp_path: Path) -> None:
    """Also where the file's values have the batch axis in front: norms go, lines merge, and inputs stay as they are."""
    x = torch.rand(5, 1, 4, 4)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2)
    )
    masks = {site: torch.arange(shape[0]) > 1 for site, shape in relu_sites(warmed(network, x), x).items()}
    network = graft(network, masks).eval()
    trace(network, x).to_onnx(str(tmp_path / "0.onnx"))
    traced = compress(trace(network, x))
    for number in range(3):
        found = compress(load_onnx(tmp_path / f"{number}.onnx"))
        assert [each.parameters for each in found.steps][-1] == traced.steps[-1].parameters < traced.steps[0].parameters
        assert found.graph.input.shape == (1, 4, 4) and not any("//" in node.name for node in found.graph)
        assert torch.allclose(module_of(found.graph)(x), network(x), atol=1e-6)
        found.graph.to_onnx(str(tmp_path / f"{number + 1}.onnx"))
        session = onnxruntime.InferenceSession(str(tmp_path / f"{number + 1}.onnx"))
        (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert torch.allclose(torch.as_tensor(answer), network(x), atol=1e-6)


def test_what_is_proven_of_the_exact_network_holds_for_the_one_that_came() -> None:
    """Numbers that float32 cannot hold: the rounded network answers otherwise, the exact one does not."""
    network = (
        nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.BatchNorm1d(1), nn.ReLU(), nn.Linear(1, 2)).double().eval()
    )
    network.get_parameter("2.bias").data.fill_(3e6 + 0.3)
    network.get_parameter("4.weight").data.fill_(1.0)
    network.get_parameter("4.bias").data.fill_(-3e6)
    x = torch.rand(20, 1, 1, 1).double()
    found = compress(trace(network, x))
    assert found.exact.values(torch.float64)[found.exact.output.inputs[1]].dtype == torch.float64
    exact = evaluate(found.exact, found.exact.values(torch.float64), x)[found.exact.output.name]
    expected = network(x).detach()
    gap = float((exact - expected).abs().max())
    assert found.steps[-1].name == "single precision" and gap < 1e-8 < 1e-2 < found.steps[-1].gap


def test_numbers_that_float32_cannot_hold_are_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double().eval()
    network.get_parameter("1.weight").data.fill_(1e200)
    with pytest.raises(ModelError, match="numbers that float32 cannot hold"):
        compress(trace(network, torch.rand(2, 1, 1, 1).double()))


def test_a_choice_between_values_is_one_in_the_module_too() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("which", torch.tensor([True, False, True]))
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(self.get_buffer("which"), self.layer(x), -x)

    network, x = Chosen().eval(), torch.rand(5, 3)
    graph = compress(trace(network, x)).graph
    assert torch.allclose(module_of(graph)(x), network(x), atol=1e-6)


def test_a_network_that_is_constant_keeps_one_channel_of_every_layer() -> None:
    network = digits_cnn(0, (3, 4), 6).eval()
    for parameter in network.parameters():
        parameter.data.zero_()
    network.get_parameter("8.bias").data.uniform_()
    x = torch.rand(2, 1, 8, 8)
    found = compress(trace(network, x))
    assert widths(found.graph) == [1, 1, 1, 10]
    same(network, found.graph, x)


def test_what_looks_at_channels_one_by_one_keeps_them() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.depth, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.depth(self.first(x).relu()).relu()
            return self.last(x.permute(0, 2, 3, 1).flatten(1))

    network = Mixing().eval()
    for part in (network.first, network.depth):
        part.weight.data[1] = 0
        assert part.bias is not None
        part.bias.data[1] = 0
    x = torch.rand(2, 1, 8, 8)
    graph = trace(network, x)
    assert groups_of(Frozen.of(graph).graph).members() == {}
    found = compress(graph)
    assert widths(found.graph) == [4, 4, 2]
    same(network, found.graph, x)


# ---------------------------------------------------------------- lines


def grafted_mlp(masks: dict[str, Tensor]) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)
    )  # fmt: skip
    made = graft(network, masks)
    for part in made.modules():
        if isinstance(part, GraftedReLU):
            part.slope.data.uniform_(-1, 1)
            part.intercept.data.uniform_(-1, 1)
    return made.eval()


@pytest.mark.parametrize("count", [16, 10, 2])
def test_lines_between_linear_layers_are_merged_where_that_saves_entries(count: int) -> None:
    mask = torch.zeros(16, dtype=torch.bool)
    mask[:count] = True
    network = grafted_mlp({"4": mask})
    x = torch.rand(5, 1, 2, 3)
    found = compress(trace(network, x))
    same(network, found.graph, x)
    ops = [node.op for node in found.graph if node.batched]
    assert ops.count("graft") == (1 if count == 2 else 0)
    assert found.steps[-3].neurons - found.steps[-1].neurons == {16: 16, 10: 10, 2: 0}[count]
    assert (found.steps[-1].parameters < found.steps[-3].parameters) == (count > 2)


def test_a_network_of_lines_becomes_one_layer() -> None:
    full = {"2": torch.ones(20, dtype=torch.bool), "4": torch.ones(16, dtype=torch.bool)}
    network = grafted_mlp(full)
    x = torch.rand(5, 1, 2, 3)
    found = compress(trace(network, x))
    assert widths(found.graph) == [3] and found.steps[-1].neurons == 0
    same(network, found.graph, x)


def lined(layers: list[nn.Module], lines: Tensor, even: bool) -> nn.Module:
    """The layers with the neurons of module 1 grafted: channels [C] or single neurons [C, H, W]."""
    torch.manual_seed(0)
    network = nn.Sequential(*layers)
    shape = network[0](torch.zeros(1, 2, 9, 8)).shape[1:]
    mask = lines.reshape(*lines.shape, *[1] * (3 - lines.dim())).expand(shape)
    made = graft(network, {"1": mask.clone()})
    part = made[1]
    assert isinstance(part, GraftedReLU)
    for value in (part.slope, part.intercept):
        places = torch.rand(shape[0], 1, 1).expand(shape) if even else torch.rand(shape)
        value.data.copy_(2 * places - 1)
    return made.eval()


HALF = torch.tensor([True, False] * 20)
WINDOWS = [
    {},
    {"stride": (2, 1), "padding": (1, 2)},
    {"dilation": (1, 2), "padding": 1},
    {"stride": 3, "dilation": 2, "padding": 3},
]


@pytest.mark.parametrize("lines", [HALF, torch.ones(40, dtype=torch.bool)], ids=["half", "all"])
@pytest.mark.parametrize("behind", [{}, {"stride": (1, 2)}, {"dilation": (2, 1)}], ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_lines_of_channels_between_convolutions_are_merged(window, behind, lines: Tensor) -> None:
    """Two convolutions are one with a larger kernel where the first one's channels are lines."""
    layers = [nn.Conv2d(2, 40, 3, **window), nn.ReLU(), nn.Conv2d(40, 3, 2, **behind), nn.Flatten()]
    network = lined(layers, lines, even=True)
    x = torch.rand(5, 2, 9, 8)
    found = compress(trace(network, x))
    same(network, found.graph, x)
    assert not any(node.op == "graft" for node in found.graph)
    assert widths(found.graph) == ([3] if bool(lines.all()) else [20, 3, 3])
    assert found.steps[-1].parameters < found.steps[-3].parameters


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_lines_of_channels_in_front_of_a_linear_layer_are_merged_whatever_their_slopes(window) -> None:
    probe = nn.Conv2d(2, 40, 3, **window)(torch.zeros(1, 2, 9, 8))
    layers = [nn.Conv2d(2, 40, 3, **window), nn.ReLU(), nn.Flatten(), nn.Linear(probe.numel(), 3)]
    single = torch.rand(probe.shape[1:]) < 0.5
    network = lined(layers, single | HALF[:, None, None], even=False)
    x = torch.rand(5, 2, 9, 8)
    found = compress(trace(network, x))
    same(network, found.graph, x)
    (rest,) = (node for node in found.graph if node.op == "graft")
    assert rest.shape[0] == 20, "channels with a neuron that is no line stay, with their lines"
    assert widths(found.graph) == [20, 3, 3]


@pytest.mark.parametrize("reason", ["padded", "uneven", "larger", "read twice"])
def test_lines_of_convolutions_stay_where_no_smaller_convolution_is_equal(reason: str) -> None:
    channels = 6 if reason == "larger" else 40
    last = nn.Conv2d(channels, 40 if reason == "larger" else 3, 2, padding=int(reason == "padded"))
    network: nn.Module = lined(
        [nn.Conv2d(2, channels, 3), nn.ReLU(), last, nn.Flatten()],
        torch.ones(channels, dtype=torch.bool),
        even=reason != "uneven",
    )
    if reason == "read twice":
        network = Twice(network).eval()
    x = torch.rand(5, 2, 9, 8)
    found = compress(trace(network, x))
    same(network, found.graph, x)
    assert any(node.op == "graft" for node in found.graph)


class Twice(nn.Module):
    """Reads the neurons of a sequence twice."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        first, graft, last, flat = self.network.children()
        z = graft(first(x))
        return flat(last(z)) + z.sum((1, 2, 3)).unsqueeze(1)


def test_grafted_convolutions_keep_their_lines_for_the_channels_that_stay() -> None:
    x = torch.rand(3, 1, 8, 8)
    network, left = thinned(digits_cnn(0, (6, 8), 12), x)
    generator = torch.Generator().manual_seed(3)
    masks = {site: torch.rand(shape, generator=generator) < 0.5 for site, shape in relu_sites(network, x).items()}
    network = graft(network, masks, intercept=0.0).eval()
    found = compress(trace(network, x))
    assert widths(found.graph)[:2] == left
    same(network, found.graph, x)
    empty = graft(digits_cnn(0), {"2": torch.zeros(16, 8, 8, dtype=torch.bool)}).eval()
    assert not any(node.op == "graft" for node in compress(trace(empty, x)).graph)


# ---------------------------------------------------------------- all of it


def test_the_file_answers_as_the_module_in_onnxruntime_and_is_compressed_again_to_itself(tmp_path: Path) -> None:
    x = torch.rand(4, 3, 32, 32)
    network, _ = thinned(warmed(cnn7l(width=8), x), x)
    generator = torch.Generator().manual_seed(3)
    masks = {site: torch.rand(shape, generator=generator) < 0.5 for site, shape in relu_sites(network, x).items()}
    network = graft(network, masks, intercept=0.1).eval()
    found = compress(trace(network, x))
    found.graph.to_onnx(str(tmp_path / "small.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(answer), network(x), atol=1e-5)
    again = compress(load_onnx(tmp_path / "small.onnx"))
    assert again.steps[-1].parameters == found.steps[-1].parameters
    assert again.steps[-1].neurons == found.steps[-1].neurons


def test_a_step_that_changes_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(net: Frozen) -> Frozen:
        tensors = {name: value * (1 + 1e-6) if value.dim() > 1 else value for name, value in net.tensors.items()}
        return net.rewritten(net.graph.nodes, tensors)

    monkeypatch.setattr(steps, "fold_norms", wrong)
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(TraceMismatch, match="fold norms changed the network's outputs by"):
        compress(trace(digits_cnn(0).eval(), x))
    net = Frozen.of(trace(digits_cnn(0).eval(), x))
    nan = net.rewritten(net.graph.nodes, {**net.tensors, "8.bias": torch.full((10,), float("nan")).double()})
    with pytest.raises(TraceMismatch):
        points = points_of(net.graph, 0.0, 1.0)
        require_equal(net, net.outputs(points), nan, points, "nothing")


def test_compression_is_of_the_weights_at_the_time(tmp_path: Path) -> None:
    x = torch.rand(2, 1, 8, 8)
    network = digits_cnn(0).eval()
    found: Compressed = compress(trace(network, x))
    before = evaluate(found.graph, found.graph.values(torch.float32), x)[found.graph.output.name]
    network.get_parameter("1.weight").data.zero_()
    assert torch.equal(evaluate(found.graph, found.graph.values(torch.float32), x)[found.graph.output.name], before)
    assert not torch.allclose(F.relu(network(x)), F.relu(before))


# ---------------------------------------------------------------- modules and folders


def test_a_module_of_a_graph_answers_trains_and_is_saved_like_any_other(tmp_path: Path) -> None:
    x = torch.rand(4, 3, 32, 32)
    network, _ = thinned(warmed(resnet_2b(width=4), x), x)
    graph = compress(trace(network, x)).graph
    made = module_of(graph)
    assert torch.allclose(made(x), network(x), atol=1e-5)
    assert set(weights(made, "all")) == {name for name, p in made.named_parameters() if p.dim() > 1}
    assert len(channels(made, x)) == 6 and len(relu_sites(made, x)) == 6
    folder = RunFolder.create(tmp_path)
    folder.save_network(made, Recipe(FACTORY, described(graph)))
    assert torch.equal(load_network(tmp_path)(x), made(x))
    masks = {site: torch.ones(shape, dtype=torch.bool) for site, shape in list(relu_sites(made, x).items())[:2]}
    grafted = graft(made, masks)
    folder.save_network(grafted, Recipe(FACTORY, described(graph)))
    assert torch.equal(load_network(tmp_path)(x), grafted(x))
    loss = F.cross_entropy(grafted.train()(x), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(p.grad is not None for name, p in grafted.named_parameters())
    assert not any(name.startswith("_0_") for name, _ in grafted.named_parameters())


def test_norms_of_a_graph_are_norms_of_its_module() -> None:
    x = torch.rand(6, 3, 32, 32)
    network = warmed(cnn7l(width=4), x)
    made = module_of(Frozen.of(trace(network, x)).rounded().graph)
    assert torch.allclose(made(x), network(x), atol=1e-5)
    assert torch.allclose(made.train()(x), network.train()(x), atol=1e-4)


def test_the_command(tmp_path: Path) -> None:
    x = torch.rand(2, 1, 8, 8)
    network, left = thinned(digits_cnn(0), x)
    trace(network, x).to_onnx(str(tmp_path / "net.onnx"))
    words = ["compress", str(tmp_path / "net.onnx"), "--out", str(tmp_path / "small")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and [line.split("  ")[0] for line in done.stdout.splitlines()][0] == "as it came"
    small = load_onnx(tmp_path / "small" / "model.onnx")
    assert widths(small)[:2] == left
    assert torch.allclose(load_network(tmp_path / "small")(x), network(x), atol=1e-5)
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told["schema"] == 1 and len(told["steps"]) == 6
    done = CliRunner().invoke(app, [*words, "--domain", "-1", "1"])
    assert done.exit_code == 2 and "work by other settings (domain: [0.0, 1.0] there, [-1.0, 1.0] here)" in done.stderr
    assert CliRunner().invoke(app, [*words, "--domain", "1", "0"]).exit_code == 2
    done = CliRunner().invoke(app, ["compress", str(tmp_path), "--out", str(tmp_path / "other")])
    assert done.exit_code == 2 and "a run folder?" in done.stderr
