"""Sparse networks beside dense ones: lines, gates and masks under every bound; the files that masks are kept in."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from oracle import exact_minimum
from torch import Tensor, nn

from surebound.bounds.alpha import AlphaCrown
from surebound.bounds.crown import Crown, Ibp
from surebound.bounds.query import Query
from surebound.data.dataset import Part
from surebound.errors import DataError
from surebound.graph.onnx_import import load_onnx
from surebound.graph.prepare import prepare
from surebound.graph.torch_export import trace
from surebound.nets.grafted import GatedReLU, GraftedReLU
from surebound.nets.small import digits_cnn
from surebound.properties import Case, Disjunct, Property, robust
from surebound.regions import Box
from surebound.search.run import VerifyConfig
from surebound.search.verify import verify
from surebound.sparsify.basis import Basis
from surebound.sparsify.compress.run import compress
from surebound.sparsify.criteria.instability import activations, image_boxes
from surebound.sparsify.graft import gate, gates_of, graft, grafting_groups, harden
from surebound.sparsify.lines import LeastSquares
from surebound.sparsify.mask_file import MaskFile, read_released, write_released
from surebound.sparsify.masks import mask_weights, masks_of, unmasked
from surebound.sparsify.select import kept
from surebound.sparsify.sites import relu_sites
from surebound.training.objectives import OBJECTIVES, TERMS
from surebound.training.scene import Bounded, Scene, images_within
from surebound.training.trainee import Trainee


def small_cnn(seed: int = 0) -> nn.Sequential:
    return digits_cnn(seed, (2, 3), 5)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def part(pixels: Tensor) -> Part:
    none = torch.zeros(len(pixels), dtype=torch.long)
    return Part(pixels, none, none)


def random_masks(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = relu_sites(network, images(1))
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}


def sparse(kind: str) -> nn.Module:
    """A network of doubles with lines, half open gates or masked weights."""
    network, generator = small_cnn(3), torch.Generator().manual_seed(0)
    if kind == "grafted":
        return graft(network.double(), random_masks(network), slope=-0.4, intercept=0.1)
    if kind == "gated":
        gated = gate(network, relu_sites(network, images(1))).double()
        for module in gated.modules():
            if isinstance(module, GatedReLU):
                module.gate.data.uniform_(-0.3, 1.3, generator=generator)
                module.intercept.data.uniform_(-0.1, 0.1, generator=generator)
        return gated
    weights = {name: p for name, p in network.named_parameters() if p.dim() > 1}
    masks = {name: torch.rand(p.shape, generator=generator) < 0.5 for name, p in weights.items()}
    return mask_weights(network.double(), masks)


def test_a_masked_network_is_left_alone_when_a_copy_of_it_loses_its_masks() -> None:
    """Copies of a parametrised module share its class, which torch changes with any of them."""
    network, x = sparse("masked"), images(2).double()
    answer, masks = network(x), masks_of(network)
    for _ in range(2):
        plain = unmasked(network)
        assert torch.equal(plain(x), answer) and not masks_of(plain)
        assert torch.equal(network(x), answer) and masks_of(network).keys() == masks.keys()
    again = mask_weights(network, {name: ~mask for name, mask in masks.items()})
    assert not torch.equal(again(x), answer) and torch.equal(network(x), answer)


# ---------------------------------------------------------------- under bounds


def test_grafted_neurons_are_never_unstable_or_split_also_after_a_round_trip_through_onnx(tmp_path: Path) -> None:
    network = small_cnn(2).eval()
    masks = random_masks(network)
    grafted = graft(network, masks, intercept=0.1).eval()
    x = images(4, 3)
    labels = grafted(x).argmax(1).tolist()
    trace(grafted, x).to_onnx(str(tmp_path / "net.onnx"))
    asked = [robust(image, label, 0.12, 10) for image, label in zip(x, labels, strict=True)]
    for graph in (trace(grafted, x), load_onnx(tmp_path / "net.onnx")):
        prepared = prepare(graph)
        nodes = activations(prepared)
        assert [node.op for node in nodes] == ["graft"] * 3
        box = image_boxes(x.reshape(4, *prepared.input.shape), 0.3)
        spec = torch.eye(10).reshape(1, 10, *prepared.output.shape).expand(4, *[-1] * (1 + len(prepared.output.shape)))
        query = Query(prepared, prepared.values(torch.float32), {prepared.input.name: box}, spec)
        found = AlphaCrown(3).bound(query)
        assert 0 < int(found.stats.unstable.max()) <= sum(int((~mask).sum()) for mask in masks.values())
        outcomes = verify(graph, asked, VerifyConfig(timeout=2, attack="none"))
        mask_of = {node.inputs[0]: mask.flatten() for node, mask in zip(nodes, masks.values(), strict=True)}
        split = [(mask_of[name], places) for outcome in outcomes for name, places in outcome.splits.items()]
        assert sum(len(places) for _, places in split) > 10
        assert not any(bool(mask[torch.from_numpy(places)].any()) for mask, places in split)


class Written(nn.Module):
    """p z + q + s relu(z) per neuron, of layers and additions alone, which exact oracles understand."""

    def __init__(self, p: Tensor, q: Tensor, s: Tensor) -> None:
        super().__init__()
        self.line, self.rest = nn.Linear(len(p), len(p)), nn.Linear(len(p), len(p), bias=False)
        self.line.weight.data, self.line.bias.data, self.rest.weight.data = torch.diag(p), q, torch.diag(s)

    def forward(self, z: Tensor) -> Tensor:
        return self.line(z) + self.rest(torch.relu(z))


def written(act: nn.Module, size: int) -> Written:
    """A sparse activation in other words."""
    zero, one = torch.zeros(size).double(), torch.ones(size).double()
    if isinstance(act, GraftedReLU):
        slope, cut = act.slope.detach(), act.intercept.detach()
        return Written(torch.where(act.mask, slope, zero), torch.where(act.mask, cut, zero), (~act.mask).double())
    if isinstance(act, GatedReLU):
        gate = act.gate.detach().clamp(0, 1)
        return Written((one - gate) * act.slope.detach(), (one - gate) * act.intercept.detach(), gate)
    return Written(zero, zero, one)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["grafted", "gated", "masked"])
def test_verdicts_are_those_of_enumeration(kind: str, seed: int) -> None:
    """A little below and above the exact minimum over all activation patterns; also of the compressed network."""
    torch.manual_seed(seed)
    plain = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    if kind == "grafted":
        network = graft(plain, {"1": torch.rand(5) < 0.5, "3": torch.rand(4) < 0.5}, slope=-0.7, intercept=0.2)
    elif kind == "gated":
        network = gate(plain, {"1": (5,), "3": (4,)}, slope=-0.4, intercept=0.1).double()
        for name in ("1", "3"):
            network.get_parameter(f"{name}.gate").data.uniform_(-0.3, 1.3)
    else:
        network = mask_weights(plain, {"0.weight": torch.rand(5, 3) < 0.6, "2.weight": torch.rand(4, 5) < 0.6})
    network = network.eval()
    layers = list(unmasked(network))  # pyright: ignore[reportArgumentType]
    exact = nn.Sequential(layers[0], written(layers[1], 5), layers[2], written(layers[3], 4), layers[4]).eval()
    low, high, row = torch.zeros(3).double(), torch.ones(3).double(), torch.tensor([[1.0, -1.0]]).double()
    x = torch.rand(1, 3).double()
    oracle = trace(exact, x)
    params = {name: value.detach() for name, value in oracle.values(torch.float64).items()}
    least = float(exact_minimum(oracle, params, (low.numpy(), high.numpy()), row.numpy())[0])
    samples = torch.rand(2000, 3).double()
    assert torch.allclose(network(samples), exact(samples), atol=1e-12)
    assert float((network(samples).detach() @ row.T).min()) >= least - 1e-9
    graph = trace(network, x)
    for of in (graph, compress(graph).exact):
        region = Box(low.reshape(1, *of.input.shape), high.reshape(1, *of.input.shape))
        for offset, name in ((-1e-4, "unsat"), (1e-4, "sat")):
            cut = Disjunct(row, torch.tensor([least + offset]).double(), ("difference",))
            (outcome,) = verify(
                of, [Property((Case(region, (cut,), None),))], VerifyConfig(timeout=20, dtype=torch.float64)
            )
            assert outcome.verdict.name == name, (least, offset)


@pytest.mark.parametrize("kind", ["grafted", "gated", "masked"])
def test_training_bounds_are_the_engines_and_their_gradients_difference_quotients(kind: str) -> None:
    network = sparse(kind)
    x, labels = images(3).double(), torch.tensor([1, 4, 7])
    objective = OBJECTIVES["crown-ibp"](beta=(0.5, 0.5))

    def scene(of: nn.Module) -> Scene:
        return Scene(Trainee(of.train(), x), x, labels, 0.05, 0.05, torch.Generator())

    here = scene(network)
    graph = prepare(trace(copy.deepcopy(network).eval(), x))
    query = Query(graph, graph.values(torch.float64), {graph.input.name: image_boxes(x, 0.05)}, here.margins)
    assert torch.allclose(here.bounded.ibp(here.margins), Ibp().bound(query).lower, atol=1e-10)
    assert torch.allclose(here.bounded.crown(here.margins), Crown("ibp").bound(query).lower, atol=1e-10)
    direction = torch.autograd.grad(objective(here), [p for p in network.parameters() if p.requires_grad])
    values = []
    for step in (1e-7, -1e-7):
        moved = copy.deepcopy(network)
        with torch.no_grad():
            for p, d in zip([p for p in moved.parameters() if p.requires_grad], direction, strict=True):
                p.add_(step * d)
        values.append(float(objective(scene(moved)).detach()))
    expected = sum(float(d.square().sum()) for d in direction)
    assert (values[0] - values[1]) / 2e-7 == pytest.approx(expected, rel=1e-4)


def test_small_boxes_shrink_unstable_relus_but_never_lines() -> None:
    masks = random_masks(small_cnn(3))
    network = graft(small_cnn(3).double(), masks, slope=0.7)
    trainee = Trainee(network.eval(), images(1).double())
    box = images_within(images(2).double(), 0.05)
    whole, shrunk = (Bounded(trainee, trainee.values({}), box, shrink).balls for shrink in (1.0, 0.4))
    name = activations(trainee.graph)[0].name
    before, layer, small = whole[trainee.graph[name].inputs[0]].ends, whole[name], shrunk[name]
    loose = (before.lower < 0) & (before.upper > 0) & ~masks["2"]
    assert 0 < int(loose.sum()) < loose.numel()
    assert torch.equal(small.radius[~loose], layer.radius[~loose])
    assert torch.allclose(small.ends.upper[loose], 0.4 * layer.ends.upper[loose])


# ---------------------------------------------------------------- lines and gates


def test_neurons_grafted_before_keep_their_lines_and_new_ones_get_others() -> None:
    first, second = torch.zeros(3, 4, 4, dtype=torch.bool), torch.zeros(3, 4, 4, dtype=torch.bool)
    first[0], second[1] = True, True
    once = graft(small_cnn(), {"4": first}, slope=0.25, intercept=0.75)
    twice = graft(once, {"4": second}, slope={"4": torch.full((3, 4, 4), 0.875)}, intercept=0.5)[4]
    assert isinstance(twice, GraftedReLU) and torch.equal(twice.mask, first | second)
    assert [twice.slope[i].unique().tolist() for i in (0, 1)] == [[0.25], [0.875]]
    assert [twice.intercept[i].unique().tolist() for i in (0, 1)] == [[0.75], [0.5]]


def test_least_squares_lines_are_the_best_ones() -> None:
    network, pixels = small_cnn(1).double().eval(), images(40).double()
    z = network[:2](pixels).detach()
    found = LeastSquares()(network, Basis(part(pixels), batch=7))
    slope, intercept = (value.double() for value in found["2"])

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a * z + b - z.clamp(min=0)).square().mean(0)

    for step in (1e-2, -1e-2):
        assert bool((distance(slope + step, intercept) >= distance(slope, intercept) - 1e-7).all())
        assert bool((distance(slope, intercept + step) >= distance(slope, intercept) - 1e-7).all())
    assert list(found) == ["2", "4", "7"]


def test_lines_of_neurons_that_never_change_are_the_relus_own() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    network.get_parameter("1.weight").data.zero_()
    network.get_parameter("1.bias").data = torch.tensor([2.0, -3.0, 0.0])
    line = LeastSquares()(network, Basis(part(torch.rand(5, 1, 1, 2))))["2"]
    assert line.slope.tolist() == [1.0, 0.0, 0.0] and line.intercept.tolist() == [0.0, 0.0, 0.0]


def test_gates_close_under_their_term_and_harden_to_the_lines_they_learned() -> None:
    x = images(3)
    network = gate(small_cnn(), relu_sites(small_cnn(), x), slope=0.25)
    assert torch.allclose(network(x), small_cnn()(x), atol=1e-6)
    middle = network.get_submodule("4")
    assert isinstance(middle, GatedReLU)
    term = TERMS["gates"]()(Scene(Trainee(network, x), x, torch.arange(3), 0.1, 0.1, torch.Generator()))
    total = 128 + 48 + 5
    assert float(term.detach()) == pytest.approx(1)
    (slope,) = torch.autograd.grad(term, [middle.gate])
    assert torch.allclose(slope, torch.full((3, 4, 4), 1 / total))
    middle.gate.data[0], middle.gate.data[1], middle.slope.data[1] = -0.5, 0.25, 0.625
    gates = gates_of(network)
    assert (float(gates["4"].min()), float(gates["4"].max())) == (0, 1)
    hard = harden(network, kept({name: -value for name, value in gates.items()}, 32 / total))
    line = hard.get_submodule("4")
    assert isinstance(line, GraftedReLU) and bool(line.mask[:2].all()) and not bool(line.mask[2].any())
    assert [int(hard.get_buffer(f"{site}.mask").sum()) for site in (2, 7)] == [0, 0]
    assert [line.slope[i].unique().tolist() for i in (0, 1)] == [[0.25], [0.625]]
    lines, weights = grafting_groups(network)
    assert (len(lines.parameters), len(weights.parameters)) == (9, 8)


# ---------------------------------------------------------------- mask files


def test_mask_files_keep_masks_order_and_provenance(tmp_path: Path) -> None:
    masks = random_masks(small_cnn())
    told = {"ratio": 0.5, "rank": "dense", "seed": 0}
    MaskFile(dict(reversed(masks.items())), "grafted", told).write(tmp_path / "mask.safetensors")
    found = MaskFile.read(tmp_path / "mask.safetensors")
    assert (list(found.masks), found.kind, found.provenance) == (["7", "4", "2"], "grafted", told)
    assert all(torch.equal(found.masks[name], mask) for name, mask in masks.items())
    with pytest.raises(DataError, match=r"nothing.safetensors is missing"):
        MaskFile.read(tmp_path / "nothing.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="is no mask file of surebound"):
        MaskFile.read(tmp_path / "bad.safetensors")


def test_the_released_form_is_read_without_running_code_and_written_back(tmp_path: Path) -> None:
    network = small_cnn()
    sites, masks = relu_sites(network, images(1)), random_masks(network)
    storage = torch.cat([mask.float().flatten() for mask in masks.values()])  # views of one storage, as released
    views = [piece.reshape(shape) for piece, shape in zip(storage.split([128, 48, 5]), sites.values(), strict=True)]
    torch.save(views, tmp_path / "released.pt")
    found = read_released(tmp_path / "released.pt", sites)
    assert list(found) == list(sites) and all(torch.equal(found[name], masks[name]) for name in sites)
    write_released(tmp_path / "again.pt", found)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(again, views, strict=True))
    for wrong, words in (
        (views[:2], "masks of shapes"),
        ([view * 0.5 for view in views], "values other than 0 and 1"),
        ({"a": views[0]}, "holds no list of tensors"),
        ([nn.Linear(1, 1)], "no list of tensors as torch.save writes it"),
    ):
        torch.save(wrong, tmp_path / "wrong.pt")
        with pytest.raises(DataError, match=words):
            read_released(tmp_path / "wrong.pt", sites)
    with pytest.raises(DataError, match=r"absent.pt is missing"):
        read_released(tmp_path / "absent.pt", sites)
