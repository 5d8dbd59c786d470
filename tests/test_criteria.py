"""Every criterion joins these by being in its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surebound.data.dataset import Part
from surebound.errors import DataError, UsageError
from surebound.graph.torch_export import trace
from surebound.measures.verified import EvaluateConfig, evaluate
from surebound.search.run import VerifyConfig
from surebound.search.verdict import Verified
from surebound.sparsify.basis import Basis
from surebound.sparsify.criteria import CHANNELS, INSTABILITY, SIGNIFICANCE, WEIGHTS
from surebound.sparsify.criteria.channels import Filters, Nrs, Refill, Slimming
from surebound.sparsify.criteria.hydra import Hydra
from surebound.sparsify.criteria.instability import Unstable
from surebound.sparsify.criteria.significance import Gap, RandomNeurons, Sap, Vap
from surebound.sparsify.criteria.splits import Splits
from surebound.sparsify.criteria.weights import Snip, SnipTrained, Taylor
from surebound.sparsify.layers import Channels, channels, weights
from surebound.sparsify.masks import mask_weights, masks_of, unmasked
from surebound.sparsify.select import kept, min_max, min_rank, select
from surebound.training.objectives.certified import Ibp
from surebound.training.objectives.regularisers import stable
from surebound.training.scene import Scene
from surebound.training.trainee import Trainee

EPS = 0.05
Scores = Mapping[str, Tensor]


class Net(nn.Module):
    """Two convolutions with norms beside a shortcut, two linear layers; every activation a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.relu = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        self.second, self.norm2 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu2, self.wide, self.relu3, self.last = nn.ReLU(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = self.relu2(self.norm2(self.second(x)))
        return self.last(self.relu3(self.wide(x.flatten(1))))


def network(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Net().double()
        for norm in (made.norm, made.norm2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.3, 0.3)
            norm.get_buffer("running_var").uniform_(0.5, 1.5)
        return made.eval()


def data(count: int = 6, seed: int = 0) -> Part:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 4, 4, dtype=torch.float64, generator=generator)
    return Part(images, torch.randint(3, (count,), generator=generator), torch.arange(count))


def basis(**changed: Any) -> Basis:
    return Basis(**{"data": data(), "eps": EPS, "batch": 4, "keep": 0.5, "initial": network(7), **changed})


QUICK: Mapping[str, Callable[[], Any]] = {"hydra": lambda: Hydra(epochs=2), "splits": lambda: Splits(timeout=2.0)}
NEURONS = {**SIGNIFICANCE, **INSTABILITY}


def of_neurons(criterion: Any, net: nn.Module, on: Basis) -> Scores:
    return criterion(net, on)


def of_weights(criterion: Any, net: nn.Module, on: Basis) -> Scores:
    return criterion(net, on, list(weights(net, "all")))


def of_channels(criterion: Any, net: nn.Module, on: Basis) -> Scores:
    return criterion(net, on, channels(net, on.example))


EVERY = (
    *((name, made, of_neurons) for name, made in NEURONS.items()),
    *((name, made, of_weights) for name, made in WEIGHTS.items()),
    *((name, made, of_channels) for name, made in CHANNELS.items()),
)
SHAPES = {
    of_neurons: {"relu": (3, 4, 4), "relu2": (4, 4, 4), "relu3": (5,)},
    of_weights: {
        "first.weight": (3, 1, 3, 3),
        "second.weight": (4, 3, 3, 3),
        "wide.weight": (5, 64),
        "last.weight": (3, 5),
    },
    of_channels: {"first.weight": (3,), "second.weight": (4,)},
}
criteria = pytest.mark.parametrize(("name", "made", "of"), EVERY, ids=[f"{of.__name__}-{n}" for n, _, of in EVERY])


def scored(name: str, made: Callable[[], Any], of: Any, net: nn.Module, **changed: Any) -> Scores:
    return of(QUICK.get(name, made)(), net, basis(**changed))


@criteria
def test_scores_have_shapes_come_again_and_leave_the_network_alone(name: str, made: Any, of: Any) -> None:
    net = network()
    net.norm.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    found = scored(name, made, of, net)
    again = scored(name, made, of, net)
    assert {key: tuple(value.shape) for key, value in found.items()} == SHAPES[of]
    assert all(value.dtype == torch.float64 and bool(torch.isfinite(value).all()) for value in found.values())
    assert all(torch.equal(value, again[key]) for key, value in found.items())
    assert len(torch.cat([value.flatten() for value in found.values()]).unique()) > 1
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.norm.training and not net.norm2.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


@criteria
def test_scores_follow_the_channels_when_those_change_places(name: str, made: Any, of: Any) -> None:
    if name in ("random", "random-channels"):
        pytest.skip("random scores do not look at the network")
    order = torch.tensor([2, 0, 3, 1])

    def moved(net: Net) -> Net:
        net.second.weight.data = net.second.weight.data[order]
        norm = net.norm2
        for values in (
            norm.weight.data,
            norm.bias.data,
            norm.get_buffer("running_mean"),
            norm.get_buffer("running_var"),
        ):
            values.copy_(values[order].clone())
        net.wide.weight.data = net.wide.weight.data.reshape(5, 4, 16)[:, order].reshape(5, 64)
        return net

    plain = scored(name, made, of, network())
    other = scored(name, made, of, moved(network()), initial=moved(network(7)))
    axis = {of_neurons: "relu2", of_weights: "second.weight", of_channels: "second.weight"}[of]
    assert torch.allclose(plain[axis][order], other[axis], rtol=1e-6, atol=1e-12)
    rest = [key for key in plain if key not in (axis, "wide.weight")]
    assert all(torch.allclose(plain[key], other[key], rtol=1e-6, atol=1e-12) for key in rest)


@criteria
@pytest.mark.parametrize("keep", [0.0, 0.13, 0.5, 0.81, 1.0])
def test_the_part_that_is_kept_is_exact(name: str, made: Any, of: Any, keep: float) -> None:
    found = scored(name, made, of, network())
    together = kept(found, keep)
    total = sum(score.numel() for score in found.values())
    assert sum(int(mask.sum()) for mask in together.values()) == round(keep * total)
    inside = torch.cat([found[key][mask] for key, mask in together.items()])
    outside = torch.cat([found[key][~mask] for key, mask in together.items()])
    assert not len(inside) or not len(outside) or float(inside.min()) >= float(outside.max())
    for mask in kept(found, keep, "layer").values():
        assert int(mask.sum()) == round(keep * mask.numel())


@pytest.mark.parametrize("name", NEURONS)
def test_neurons_of_a_grafted_or_a_masked_network_are_scored_too(name: str) -> None:
    from surebound.sparsify.graft import graft

    made = QUICK.get(name, NEURONS[name])()
    found = {key: torch.zeros(shape, dtype=torch.bool) for key, shape in SHAPES[of_neurons].items()}
    found["relu2"][0] = True
    scores = made(graft(network(), found).double(), basis())
    assert {key: tuple(value.shape) for key, value in scores.items()} == SHAPES[of_neurons]
    if name in INSTABILITY:
        assert float(scores["relu2"][0].sum()) == 0 < float(scores["relu2"].sum())
    half = {key: torch.ones_like(value, dtype=torch.bool) for key, value in weights(network()).items()}
    half["second.weight"][1] = False
    assert list(made(mask_weights(network(), half), basis())) == list(SHAPES[of_neurons])


# ---------------------------------------------------------------- each by itself


def test_measured_significance_by_hand() -> None:
    net, on = network(), basis()
    images, labels = on.data.images, on.data.labels
    z = net.norm(net.first(images)).detach()
    assert torch.allclose(Sap()(net, on)["relu"], z.abs().mean(0))
    assert torch.allclose(Sap(place="behind")(net, on)["relu"], z.clamp(min=0).mean(0))
    assert torch.allclose(Vap()(net, on)["relu"], z.var(0, correction=0))
    leaf = z.clamp(min=0).requires_grad_(True)
    loss = F.cross_entropy(
        net.last(net.relu3(net.wide(net.relu2(net.norm2(net.second(leaf))).flatten(1)))), labels, reduction="sum"
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.allclose(Gap(place="behind")(net, on)["relu"], gradient.abs().mean(0))
    assert torch.allclose(Gap()(net, on)["relu"], (gradient * (z > 0)).abs().mean(0))
    moved = (
        images
        + EPS
        * torch.autograd.grad(
            F.cross_entropy(net(i := images.clone().requires_grad_(True)), labels, reduction="sum"), i
        )[0].sign()
    )
    attacked = net.norm(net.first(moved.clamp(0, 1)))
    assert torch.allclose(Sap(attacked=True)(net, on)["relu"], attacked.abs().mean(0))


def test_variance_survives_a_large_mean() -> None:
    net, on = network(), basis()
    plain = Vap()(net, on)["relu"]
    net.norm.bias.data += 1e6
    assert torch.allclose(Vap()(net, on)["relu"], plain, rtol=1e-6)


def test_connection_sensitivity_is_the_derivative_by_the_mask() -> None:
    net, on = network(), basis(batch=6, objective=Ibp())
    names = list(weights(net, "all"))

    def loss(changed: nn.Module) -> float:
        changed.train()
        trainee = Trainee(changed, on.example)
        return float(Ibp()(Scene(trainee, on.data.images, on.data.labels, EPS, EPS, torch.Generator())).detach())

    snip, taylor, early = SnipTrained()(net, on, names), Taylor()(net, on, names), Snip()(net, on, names)
    step = 1e-6
    for name, place in (("first.weight", (1, 0, 2, 1)), ("second.weight", (3, 2, 0, 1)), ("last.weight", (1, 2))):
        for source, score in ((net, snip), (network(7), early)):
            values = []
            for factor in (1 + step, 1 - step):
                changed = unmasked(source)
                changed.get_parameter(name).data[place] *= factor
                values.append(loss(changed))
            assert float(score[name][place]) == pytest.approx(
                abs(values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-9
            )
        assert torch.allclose(taylor[name], snip[name].square())
    assert not torch.allclose(snip["first.weight"], early["first.weight"])
    several = basis(batch=2, objective=Ibp())
    sums, squares = SnipTrained()(net, several, names), Taylor()(net, several, names)
    assert not torch.allclose(squares["first.weight"], sums["first.weight"].square())


def test_snip_needs_the_network_at_its_initialisation() -> None:
    with pytest.raises(UsageError, match="use snip-trained for the one at hand"):
        Snip()(network(), basis(initial=None), ["first.weight"])


def test_snip_scores_under_the_present_masks() -> None:
    masks = {"first.weight": torch.ones(3, 1, 3, 3, dtype=torch.bool)}
    masks["first.weight"][0] = False
    for made in (Snip(), SnipTrained(), Taylor()):
        found = made(mask_weights(network(), masks), basis(), ["first.weight", "second.weight"])
        assert float(found["first.weight"][0].abs().sum()) == 0 < float(found["first.weight"][1].min())


def test_hydra_learns_scores_that_lower_the_loss_of_what_is_kept() -> None:
    net = network(3)
    on = basis(data=data(30), keep=0.4, batch=30)
    names = list(weights(net, "all"))

    def loss(criterion: Hydra) -> float:
        masks = kept(criterion(net, on, names), 0.4, "layer")
        with torch.no_grad():
            pruned = mask_weights(net, masks).train()
            return float(F.cross_entropy(pruned(on.data.images), on.data.labels))

    assert loss(Hydra(epochs=40, rate=0.05)) < loss(Hydra(epochs=1, rate=0.0)) - 0.05


def test_hydra_scores_move_under_bounds_and_start_as_scaled_weights() -> None:
    net, on = network(), basis(objective=Ibp())
    start = Hydra(epochs=1, rate=0.0)(net, on, ["second.weight"])["second.weight"]
    weight = net.second.weight.detach()
    assert torch.allclose(start, (6 / 27) ** 0.5 * weight.abs() / weight.abs().max())
    after = Hydra(epochs=1, rate=0.01)(net, on, ["second.weight"])["second.weight"]
    assert int((start != after).sum()) > 90
    whole = Hydra(epochs=1, rate=0.01, scope="global")(net, on, list(weights(net, "all")))
    assert all(
        not torch.equal(score, Hydra(epochs=1, rate=0.0)(net, on, [name])[name]) for name, score in whole.items()
    )


def test_channel_criteria_by_hand() -> None:
    net, on = network(), basis()
    of = channels(net, on.example)
    assert of["first.weight"] == Channels(
        ("first.weight", "first.bias", "norm.weight", "norm.bias"), 3, "norm.weight", "relu"
    )
    assert of["second.weight"].parameters == ("second.weight", "norm2.weight", "norm2.bias")
    assert list(channels(net, on.example, "all")) == ["first.weight", "second.weight", "wide.weight"]
    net.norm.weight.data[0] *= -1
    assert torch.equal(Slimming()(net, on, of)["first.weight"], net.norm.weight.detach().abs())
    assert float(net.norm.weight.data[0]) < 0
    assert torch.equal(Filters()(net, on, of)["second.weight"], net.second.weight.detach().abs().flatten(1).mean(1))
    every = torch.cat([net.first.weight.detach().abs().flatten(), net.second.weight.detach().abs().flatten()])
    threshold = every.sort().values[round(0.5 * len(every)) - 1]
    left = net.second.weight.detach().abs()
    expected = torch.where(left > threshold, left, 0.0).flatten(1).mean(1)
    assert torch.allclose(Refill(rate=0.5)(net, on, of)["second.weight"], expected)
    bounded = Scene(
        Trainee(net.eval(), on.example), on.data.images, on.data.labels, EPS, EPS, torch.Generator()
    ).bounded
    loss = stable(bounded.pre_activations["relu"].ends, net.norm.weight, 1e-20)
    assert torch.allclose(Nrs()(net, on, of)["first.weight"], -loss.mean((0, 2, 3)).detach())
    with pytest.raises(UsageError, match=r"none stands behind the layer of 'wide.weight'"):
        Slimming()(net, on, channels(net, on.example, "all"))


def test_a_channel_that_is_not_kept_answers_zero() -> None:
    net, on = network(), basis()
    of = channels(net, on.example)
    kept = torch.tensor([True, False, True, False])
    masks = of["second.weight"].masks(net, kept, {})
    pruned = mask_weights(net, masks)
    behind = pruned.norm2(pruned.second(pruned.relu(pruned.norm(pruned.first(on.data.images)))))
    assert bool((behind[:, [1, 3]] == 0).all()) and bool((behind[:, [0, 2]] != 0).any())
    assert set(masks_of(pruned)) == {"second.weight", "norm2.weight", "norm2.bias"}
    before = {"second.weight": torch.rand(net.second.weight.shape) < 0.5}
    again = of["second.weight"].masks(net, kept, before)
    assert torch.equal(again["second.weight"], masks["second.weight"] & before["second.weight"])
    before["second.weight"][2] = False
    assert of["second.weight"].alive(before).tolist() == [True, True, False, True]


def test_splits_are_those_of_the_proof_trees() -> None:
    net, on = network(5), basis(eps=0.5, data=data(40))
    config = EvaluateConfig(("clean", "complete"), search=VerifyConfig(timeout=5, attack="none"))
    expected: dict[str, int] = {}
    for each in evaluate(trace(net, on.example), on.data, on.eps, config=config):
        if each.outcome is None:
            continue
        counted = {name: len(places) for name, places in each.outcome.splits.items()}
        if isinstance(each.outcome.verdict, Verified):
            inner = sum(len(tree.parent) - len(tree.leaves) for tree in each.outcome.verdict.trees)
            assert sum(counted.values()) == inner
        for name, count in counted.items():
            expected[name] = expected.get(name, 0) + count
    assert sum(expected.values()) > 5
    found = Splits(timeout=5)(net, on)
    assert sum(int(score.floor().sum()) for score in found.values()) == sum(expected.values())
    assert all(bool((score % 1 <= 0.5).all()) for score in found.values())


def test_maxima_are_no_neurons() -> None:
    """Their ReLUs, which bounds make of them, can be split, but not grafted."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(),
        nn.Linear(5, 3),
    )  # fmt: skip
    found = Splits(timeout=1.0)(net.double().eval(), basis(eps=0.2))
    assert {name: tuple(score.shape) for name, score in found.items()} == {"1": (3, 4, 4), "5": (5,)}


def test_instability_by_tighter_bounds_is_no_larger() -> None:
    net, on = network(), basis(eps=0.15)
    ibp, crown, alpha = (Unstable(bounds)(net, on) for bounds in ("ibp", "crown", "alpha-crown"))
    assert all(bool((alpha[key] <= crown[key]).all() and (crown[key] <= ibp[key]).all()) for key in ibp)
    assert sum(float(v.sum()) for v in alpha.values()) < sum(float(v.sum()) for v in ibp.values())


# ---------------------------------------------------------------- what stays, what is grafted


def test_kept_ones_are_among_those_there_and_no_layer_dies() -> None:
    scores = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([9.0, 8.0, 7.0, 6.0])}
    there = {"a": torch.tensor([True, True, False, True]), "b": torch.tensor([True, False, True, True])}
    found = kept(scores, 0.5, there=there)
    assert found["a"].tolist() == [False, False, False, True] and found["b"].tolist() == [True, False, True, True]
    assert [int(mask.sum()) for mask in kept(scores, 0.25).values()] == [0, 2]
    alive = kept(scores, 0.25, least=1)
    assert alive["a"].tolist() == [False, False, False, True] and alive["b"].tolist() == [True, False, False, False]
    with pytest.raises(UsageError, match="7 are to be kept and only 6 are left"):
        kept(scores, 0.875, there=there)
    with pytest.raises(UsageError, match="scores of 'a' are not all finite"):
        kept({"a": torch.tensor([float("nan")])}, 0.5)


def test_ranks_by_hand() -> None:
    values = torch.tensor([5.0, 1.0, 5.0, 9.0, 1.0])
    assert min_rank(values).tolist() == [0.5, 0.0, 0.5, 1.0, 0.0]
    assert min_max(values).tolist() == [0.5, 0.0, 0.5, 1.0, 0.0]
    assert min_max(torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rank", ["dense", "min", "raw"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.77, 1.0])
def test_every_scope_meets_its_ratio(rank: str, ratio: float) -> None:
    on = basis()
    significance, unstable_ = RandomNeurons()(network(), on), RandomNeurons()(network(), basis(seed=1))
    total = 48 + 64 + 5
    layered = select(significance, unstable_, ratio, rank=rank, scope="layer")
    assert sum(int(mask.sum()) for mask in layered.masks.values()) == round(ratio * total)
    assert all(abs(int(mask.sum()) - ratio * mask.numel()) < 1 for mask in layered.masks.values())
    whole = select(significance, unstable_, ratio, rank=rank, scope="channel")
    for mask in whole.masks.values():
        if mask.dim() > 1:
            assert all(bool(channel.all()) or not bool(channel.any()) for channel in mask)
    count = sum(int(mask.sum()) for mask in whole.masks.values())
    assert round(ratio * total) - 16 < count <= round(ratio * total)


def test_infinite_gamma_looks_at_instability_alone_and_what_was_taken_stays() -> None:
    significance = {"a": torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])}
    unstable_ = {"a": torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])}
    chosen = select(significance, unstable_, 0.5, gammas=(float("inf"),))
    assert chosen.masks["a"].tolist() == [False, False, False, True, True, True]
    taken = {"a": torch.tensor([True, False, False, False, False, False])}
    more = select(significance, unstable_, 0.5, gammas=(float("inf"),), taken=taken)
    assert more.masks["a"].tolist() == [True, False, False, False, True, True]
    assert more.ratio == 0.5


def test_messages() -> None:
    net = network()
    with pytest.raises(UsageError, match="got place 'inside'"):
        Gap(place="inside")
    with pytest.raises(UsageError, match="ibp, crown, alpha-crown, not by 'lp'"):
        Unstable("lp")
    with pytest.raises(UsageError, match="must be one of conv, all, got 'linear'"):
        weights(net, "linear")
    with pytest.raises(UsageError, match="no weights to prune under layers = 'conv'"):
        weights(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UsageError, match="without the first and the last layer"):
        weights(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), "all", ends=False)
    with pytest.raises(UsageError, match="no channels to prune"):
        channels(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2), "all")
    with pytest.raises(DataError, match="there are none"):
        Basis(data(0))
    with pytest.raises(UsageError, match="the mask 'nothing.weight' is for a parameter that the network does not have"):
        mask_weights(net, {"nothing.weight": torch.ones(1)})
    with pytest.raises(UsageError, match=r"has shape \[2\], the network's parameter \[3, 1, 3, 3\]"):
        mask_weights(net, {"first.weight": torch.ones(2)})
    with pytest.raises(UsageError, match="more than 0 seconds"):
        Splits(timeout=0)
    with pytest.raises(UsageError, match="ranked by one of dense, min, raw"):
        select({"a": torch.ones(2)}, {"a": torch.ones(2)}, 0.5, rank="best")
    with pytest.raises(UsageError, match="chosen by one of global, layer, channel"):
        select({"a": torch.ones(2)}, {"a": torch.ones(2)}, 0.5, scope="row")
