"""Grafting: the activation, the surgery, the criteria, the choice of neurons."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating
from surebound.bounds.crown import Crown, Ibp
from surebound.bounds.query import Query
from surebound.data.dataset import Part
from surebound.errors import DataError, ModelError, UsageError
from surebound.graph.ir import evaluate
from surebound.graph.onnx_import import load_onnx
from surebound.graph.prepare import prepare
from surebound.graph.torch_export import trace
from surebound.nets.grafted import GraftedReLU
from surebound.nets.small import digits_cnn
from surebound.properties import robust
from surebound.runs import Recipe, RunFolder, load_network
from surebound.search.run import VerifyConfig
from surebound.search.verify import verify
from surebound.sparsify.basis import Basis
from surebound.sparsify.criteria.instability import Unstable, activations, image_boxes, unstable
from surebound.sparsify.criteria.significance import Gap
from surebound.sparsify.graft import graft, grafting_groups, prune_neurons
from surebound.sparsify.select import dense_rank, select
from surebound.sparsify.sites import relu_sites

SMALL = {"channels": [2, 3], "hidden": 5}


def small_cnn(seed: int = 0) -> nn.Sequential:
    return digits_cnn(seed, (2, 3), 5)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def random_masks(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = relu_sites(network, images(1))
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}


# ---------------------------------------------------------------- the activation


def test_grafted_relu_is_a_line_where_masked_and_relu_elsewhere() -> None:
    layer = GraftedReLU(torch.tensor([True, False]), slope=0.4, intercept=0.25)
    z = torch.tensor([[-2.0, -2.0], [3.0, 3.0]])
    assert torch.allclose(layer(z), torch.tensor([[-0.55, 0.0], [1.45, 3.0]]))


def test_gradients_of_the_lines_are_z_and_one_and_exactly_zero_where_not_grafted() -> None:
    layer = GraftedReLU(torch.tensor([True, False]))
    z = torch.tensor([[-2.0, 5.0], [3.0, 7.0]], requires_grad=True)
    layer(z).sum().backward()
    assert layer.slope.grad is not None and layer.intercept.grad is not None and z.grad is not None
    assert layer.slope.grad.tolist() == [1.0, 0.0]
    assert layer.intercept.grad.tolist() == [2.0, 0.0]
    assert torch.allclose(z.grad, torch.tensor([[0.4, 1.0], [0.4, 1.0]]))


# ---------------------------------------------------------------- the surgery


def test_graft_leaves_the_original_alone_and_replaces_only_named_sites() -> None:
    network = small_cnn()
    masks = random_masks(network)
    before = network(images(4))
    grafted = graft(network, {"4": masks["4"]})
    assert torch.equal(network(images(4)), before)
    assert [type(part).__name__ for part in grafted][2::5] == ["ReLU", "ReLU"]
    assert isinstance(grafted[4], GraftedReLU) and torch.equal(grafted[4].mask, masks["4"])
    assert not torch.equal(grafted(images(4)), before)
    grafted[1].weight.data.zero_()
    assert bool((network[1].weight != 0).all())


def test_empty_masks_change_nothing() -> None:
    network = small_cnn()
    empty = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in relu_sites(network, images(1)).items()}
    assert torch.equal(graft(network, empty)(images(3)), network(images(3)))


def test_pruned_neurons_answer_zero_and_are_not_trained() -> None:
    network = small_cnn()
    masks = random_masks(network)
    pruned = prune_neurons(network, masks)
    seen: list[Tensor] = []
    pruned[4].register_forward_hook(lambda module, inputs, output: seen.append(output))
    pruned(images(6))
    assert bool((seen[0][:, masks["4"]] == 0).all())
    assert bool((seen[0][:, ~masks["4"]] > 0).any())
    lines, weights = grafting_groups(pruned)
    assert lines.parameters == [] and len(weights.parameters) == 8
    assert all(not parameter.requires_grad for name, parameter in pruned.named_parameters() if "slope" in name)


def test_grafting_trains_lines_without_decay_and_weights_slowly() -> None:
    grafted = graft(small_cnn(), random_masks(small_cnn()))
    lines, weights = grafting_groups(grafted)
    assert (lines.rate, lines.weight_decay, weights.rate, weights.weight_decay) == (0.01, 0.0, 0.001, 5e-4)
    assert len(lines.parameters) == 6 and len(weights.parameters) == 8
    assert {id(p) for p in lines.parameters} | {id(p) for p in weights.parameters} == {
        id(p) for p in grafted.parameters()
    }


def test_a_mask_for_something_else_than_a_relu_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'1' is not a torch.nn.ReLU of the network \(those are: 2, 4, 7\)"):
        graft(small_cnn(), {"1": torch.ones(2, 8, 8, dtype=torch.bool)})


def test_sites_run_in_order_and_shared_or_missing_activations_are_refused() -> None:
    assert relu_sites(small_cnn(), images(1)) == {"2": (2, 8, 8), "4": (3, 4, 4), "7": (5,)}
    relu = nn.ReLU()
    with pytest.raises(UsageError, match="'0' runs more than once"):
        relu_sites(nn.Sequential(relu, nn.Linear(2, 2), relu), torch.ones(1, 2))
    with pytest.raises(UsageError, match="no torch.nn.ReLU modules"):
        relu_sites(nn.Linear(2, 2), torch.ones(1, 2))


def test_a_grafted_network_traces_to_graft_nodes_and_exports_to_standard_onnx(tmp_path) -> None:
    network = graft(small_cnn(), random_masks(small_cnn()), intercept=0.1).eval()
    graph = trace(network, images(1))
    assert [node.op for node in activations(graph)] == ["graft"] * 3
    graph.to_onnx(str(tmp_path / "net.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    x = images(3)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), network(x), atol=1e-5)


def test_all_neurons_grafted_is_an_affine_network_that_crown_bounds_exactly() -> None:
    network = small_cnn().double()
    full = {
        name: torch.ones(shape, dtype=torch.bool) for name, shape in relu_sites(network, images(1).double()).items()
    }
    affine = graft(network, full).double().eval()
    graph = trace(affine, images(1).double())
    x = images(1).double()
    spec = torch.zeros(1, 1, 10, dtype=torch.float64)
    spec[0, 0, 0], spec[0, 0, 1] = 1, -1
    box = image_boxes(x, 0.05)
    bounds = Crown().bound(Query(graph, graph.values(torch.float64), {graph.input.name: box}, spec))
    leaf = x.clone().requires_grad_(True)
    logits = affine(leaf)
    (gradient,) = torch.autograd.grad(logits[0, 0] - logits[0, 1], leaf)
    corner = torch.where(gradient > 0, box.lower, box.upper)
    worst = affine(corner)
    assert bounds.lower.item() == pytest.approx((worst[0, 0] - worst[0, 1]).item(), abs=1e-9)
    assert int(bounds.stats.unstable) == 0


def test_a_fully_grafted_network_is_proven_without_any_split() -> None:
    network = small_cnn(1).eval()
    x, config = images(4, 3), VerifyConfig(timeout=20, attack="none")
    full = {name: torch.ones(shape, dtype=torch.bool) for name, shape in relu_sites(network, x).items()}
    affine = graft(network, full).eval()
    label = affine(x).argmax(1)
    outcomes = verify(trace(affine, x), [robust(x[i], int(label[i]), 1e-4, 10) for i in range(4)], config)
    assert [outcome.verdict.name for outcome in outcomes] == ["unsat"] * 4
    assert all(outcome.nodes <= 9 for outcome in outcomes)


# ---------------------------------------------------------------- criteria


def instability(network: nn.Module, pixels: Tensor, eps: float) -> dict[str, Tensor]:
    none = torch.zeros(len(pixels), dtype=torch.long)
    return Unstable("crown")(network, Basis(Part(pixels, none, none), eps))


def part_of(count: int) -> Part:
    generator = torch.Generator().manual_seed(5)
    return Part(images(count, 5), torch.randint(10, (count,), generator=generator), torch.arange(count))


def test_significance_is_the_mean_absolute_gradient_of_each_sample_alone() -> None:
    network = small_cnn().eval()
    data = part_of(7)
    found = Gap()(network, Basis(data))
    expected = torch.zeros(3, 4, 4)
    for image, label in zip(data.images, data.labels, strict=True):
        z = network[:4](image.unsqueeze(0)).detach().requires_grad_(True)
        loss = F.cross_entropy(network[4:](z), label.unsqueeze(0))
        expected += torch.autograd.grad(loss, z)[0][0].abs() / 7
    assert list(found) == ["2", "4", "7"]
    assert torch.allclose(found["4"].float(), expected, atol=1e-7)


def test_significance_does_not_depend_on_the_batch_size_or_on_in_place_activations() -> None:
    data = part_of(150)
    network = small_cnn().eval()
    halves = [Gap()(network, Basis(data.take(torch.arange(a, b)))) for a, b in ((0, 50), (50, 150))]
    whole = Gap()(network, Basis(data))
    for module in network:
        if isinstance(module, nn.ReLU):
            module.inplace = True
    inside = Gap()(network, Basis(data))
    for name, values in whole.items():
        assert torch.allclose(values, (50 * halves[0][name] + 100 * halves[1][name]) / 150, atol=1e-6)
        assert torch.allclose(values, inside[name], atol=1e-7)


def test_significance_needs_images() -> None:
    with pytest.raises(DataError, match="there are none"):
        Gap()(small_cnn(), Basis(part_of(3).first(0)))


def test_instability_counts_the_images_whose_box_crosses_zero() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)).eval()
    network[1].weight.data = torch.tensor([[1.0, 0.0], [1.0, -1.0], [-1.0, -1.0]])
    pixels = torch.tensor([[0.5, 0.5], [0.5, 0.3]]).reshape(2, 1, 1, 2)
    found = instability(network, pixels, 0.06)
    assert list(found) == ["2"]
    assert found["2"].tolist() == [0.0, 0.5, 0.0]
    assert instability(network, pixels, 0.11)["2"].tolist() == [0.0, 1.0, 0.0]


def test_instability_never_misses_a_neuron_that_changes_sign_and_crown_finds_no_more_than_ibp() -> None:
    network = small_cnn(2).eval()
    pixels, eps = images(5, 7), 0.04
    graph = trace(network, pixels)
    crown, ibp = unstable(graph, pixels, eps, Crown()), unstable(graph, pixels, eps, Ibp())
    region = image_boxes(pixels, eps)
    samples = region.sample(200, torch.Generator().manual_seed(0)).flatten(0, 1)
    with torch.no_grad(), evaluating(network):
        z = [network[:2](samples), network[:4](samples), network[:7](samples)]
    for flags, loose, values in zip(crown, ibp, z, strict=True):
        values = values.reshape(5, 200, *values.shape[1:])
        changes = (values > 1e-6).any(1) & (values < -1e-6).any(1)
        assert not bool((changes & ~flags).any())
        assert not bool((flags & ~loose).any())
    assert sum(int(f.sum()) for f in crown) < sum(int(f.sum()) for f in ibp)


class Line(nn.Module):
    """where(mask, line, relu) with a line written in some way."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("mask", torch.tensor([True] * 6 + [False] * 2))
        self.slope, self.cut = nn.Parameter(torch.linspace(-1, 1, 8)), nn.Parameter(torch.linspace(-0.3, 0.4, 8))

    def forward(self, z: Tensor) -> Tensor:
        lines = {
            "line": lambda: z * self.slope + self.cut,
            "cut first": lambda: self.cut + self.slope * z,
            "no cut": lambda: z * self.slope,
            "number": lambda: 0.4 * z,
            "difference": lambda: self.slope * z - self.cut,
            "constant": lambda: torch.zeros_like(z) + self.cut,
        }
        return torch.where(self.get_buffer("mask"), lines[self.form](), torch.relu(z))


@pytest.mark.parametrize("form", ["line", "cut first", "no cut", "number", "difference", "constant"])
def test_lines_are_recognised_however_they_are_written(form: str, tmp_path) -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(3, 8), Line(form), nn.Linear(8, 2)).eval(), torch.rand(50, 3)
    graph = trace(network, x[:1])
    graph.to_onnx(str(tmp_path / "net.onnx"))
    for made in (graph, load_onnx(tmp_path / "net.onnx")):
        prepared = prepare(made)
        assert [node.op for node in prepared if node.batched and node.op not in ("input", "reshape")] == [
            "linear", "graft", "linear",
        ]  # fmt: skip
        answers = evaluate(prepared, prepared.values(torch.float32), x.reshape(50, *prepared.input.shape))
        assert torch.allclose(answers[prepared.output.name].flatten(1), network(x), atol=1e-6)


def test_grafted_neurons_are_never_unstable() -> None:
    network = small_cnn(2)
    masks = random_masks(network)
    found = instability(graft(network, masks), images(5), 0.2)
    assert list(found) == list(masks)
    for name, mask in masks.items():
        assert float(found[name][mask].sum()) == 0
    assert float(found["2"].sum()) > 0


def test_functional_relus_are_refused_with_a_remedy() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.relu, self.second = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.second(self.relu(self.first(x))))

    with pytest.raises(UsageError, match=r"1 ReLU modules \(relu\) and 2 ReLUs in its graph"):
        instability(Mixed(), torch.rand(2, 2), 0.1)


# ---------------------------------------------------------------- the choice


def test_dense_ranks_share_and_have_no_gaps() -> None:
    assert dense_rank(torch.tensor([5.0, 1.0, 5.0, 9.0])).tolist() == [0.5, 0.0, 0.5, 1.0]
    assert dense_rank(torch.tensor([3.0, 3.0])).tolist() == [0.0, 0.0]


def test_stages_follow_gamma_and_exclude_what_is_chosen() -> None:
    significance = {"a": torch.tensor([0.0, 1.0, 2.0, 3.0]), "b": torch.tensor([4.0, 5.0, 6.0, 7.0])}
    instability_ = {"a": torch.tensor([0.0, 0.0, 0.1, 0.1]), "b": torch.tensor([0.2, 0.2, 1.0, 1.0])}
    chosen = select(significance, instability_, 0.5)
    # ranks: r_s = k/7; r_u = 0, 0, 1/3, 1/3, 2/3, 2/3, 1, 1. Stage 1 (gamma 2) takes b2 (2 - 6/7), stage 2 (1.5)
    # b3 (1.5 - 1), not b0 (1 - 4/7 = 0.43); stage 3 (1) takes b0 (0.095); stage 4 (0) the least significant, a0.
    assert chosen.masks["a"].tolist() == [True, False, False, False]
    assert chosen.masks["b"].tolist() == [True, False, True, True]
    assert [stage.taken for stage in chosen.stages] == [{"a": 0, "b": 1}] * 3 + [{"a": 1, "b": 0}]
    assert [stage.lowest for stage in chosen.stages] == pytest.approx([8 / 7, 0.5, 2 / 21, 0.0])
    assert chosen.ratio == 0.5


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.1, 11), (0.37, 40), (0.5, 54), (1.0, 107)])
def test_the_ratio_is_exact_and_the_stages_equal(ratio: float, count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (3, 5, 5), "b": (32,)}
    values = [{name: torch.rand(shape, generator=generator) for name, shape in shapes.items()} for _ in range(2)]
    chosen = select(values[0], values[1], ratio)
    sizes = [sum(stage.taken.values()) for stage in chosen.stages]
    assert sum(int(mask.sum()) for mask in chosen.masks.values()) == count == sum(sizes)
    assert max(sizes) - min(sizes) <= 1
    assert chosen.ratio == count / 107
    assert {name: tuple(mask.shape) for name, mask in chosen.masks.items()} == shapes


def test_the_choice_follows_the_neurons_when_they_are_permuted_and_ignores_units() -> None:
    generator = torch.Generator().manual_seed(2)
    significance, unstable_ = torch.rand(60, generator=generator), torch.rand(60, generator=generator)
    order = torch.randperm(60, generator=generator)
    plain = select({"a": significance}, {"a": unstable_}, 0.4)
    moved = select({"a": 1e6 * significance[order]}, {"a": unstable_[order] ** 3}, 0.4)
    assert torch.equal(plain.masks["a"][order], moved.masks["a"])


def test_select_explains_what_does_not_fit() -> None:
    one = {"a": torch.ones(3)}
    with pytest.raises(UsageError, match=r"must lie in \[0, 1\], got 1.5"):
        select(one, one, 1.5)
    with pytest.raises(UsageError, match=r"sites \['a'\], instability for \['b'\]"):
        select(one, {"b": torch.ones(3)}, 0.5)
    with pytest.raises(UsageError, match=r"'a' has shape \[3\] in one criterion, \[4\]"):
        select(one, {"a": torch.ones(4)}, 0.5)
    with pytest.raises(UsageError, match="not all finite"):
        select(one, {"a": torch.tensor([1.0, float("nan"), 0.0])}, 0.5)


# ---------------------------------------------------------------- run folders


def test_a_grafted_network_comes_back_from_its_run_folder(tmp_path) -> None:
    grafted = graft(small_cnn(), random_masks(small_cnn()), 0.3, 0.1).eval()
    pruned = prune_neurons(small_cnn(), random_masks(small_cnn())).eval()
    folder = RunFolder.create(tmp_path / "run")
    recipe = Recipe("surebound.nets.small:digits_cnn", {"seed": 3, **SMALL})
    for name, network in (("grafted", grafted), ("pruned", pruned)):
        folder.save_network(network, recipe, name)
        back = load_network(folder.path, name)
        assert torch.equal(back(images(3)), network(images(3)))
        assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in network.parameters()]


def test_a_run_folder_never_calls_foreign_code_and_says_what_is_wrong(tmp_path) -> None:
    folder = RunFolder.create(tmp_path)
    with pytest.raises(ModelError, match="model.json is missing"):
        load_network(tmp_path)
    folder.save_network(small_cnn(), Recipe("os:getcwd"))
    with pytest.raises(ModelError, match="'os:getcwd' is not a factory of surebound.nets"):
        load_network(tmp_path)
    folder.save_network(small_cnn(), Recipe("surebound.nets.small:digits_cnn", {"hidden": 6, "channels": [2, 3]}))
    with pytest.raises(ModelError, match="does not fit model.json"):
        load_network(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="cannot be read"):
        load_network(tmp_path)
