"""Every objective and every added term joins these by being in its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating
from surebound.bounds.crown import Crown, Ibp
from surebound.bounds.query import Query
from surebound.errors import UsageError
from surebound.graph.ir import Graph
from surebound.graph.prepare import prepare
from surebound.graph.torch_export import trace
from surebound.linear import cached
from surebound.nets.small import digits_cnn
from surebound.ops.piecewise import RELU
from surebound.regions import Box
from surebound.training import fusion
from surebound.training.balls import Ball, Chords, Dense, Relu
from surebound.training.fusion import differences, fused
from surebound.training.objectives import OBJECTIVES, TERMS, regularisers
from surebound.training.objectives.adversarial import Pgd, grad_align
from surebound.training.objectives.distill import Distilled
from surebound.training.objectives.objective import of_margins
from surebound.training.objectives.regularisers import NrsLoss, NrsReleased, Plus, RsLoss, stable
from surebound.training.objectives.standard import Standard
from surebound.training.scene import Scene, images_within, margin_rows
from surebound.training.trainee import Trainee

EPS = 0.06
STEP = 1e-8
"""Of difference quotients: small, because losses have kinks."""
CERTIFIED = ("ibp", "crown-ibp")


class Residual(nn.Module):
    """Norms that follow a convolution, an addition and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.sum = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.flat, self.wide, self.last = nn.Linear(3 * 36, 7), nn.BatchNorm1d(7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.sum(x + self.second(x)))
        return self.last(F.relu(self.wide(self.flat(x.flatten(1)))))


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Residual().double()
        for part in net.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(part.weight, -1.5, 1.5)
                nn.init.uniform_(part.bias, -0.5, 0.5)
        return net.train()


def scene(net: nn.Module, eps: float = EPS, target: float | None = None, count: int = 6) -> Scene:
    random = torch.Generator().manual_seed(5)
    x = torch.rand(count, 1, 6, 6, dtype=torch.float64, generator=random)
    y = torch.randint(4, (count,), generator=random)
    trainee = Trainee(net, x)
    if isinstance(net, Residual) and net.last.weight.dtype == torch.float64:
        trainee.__dict__["source"] = replace(traced(), parameters=lambda: net.state_dict(keep_vars=True))
    return Scene(trainee, x, y, eps, eps if target is None else target, torch.Generator().manual_seed(3))


@cache
def traced() -> Graph:
    """The graph of such a network; tracing takes most of a test's time."""
    return Trainee(network(), torch.zeros(1, 1, 6, 6, dtype=torch.float64)).source


def gradients(net: nn.Module, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(net.parameters(), found, strict=True)]


def quotient(direction: Sequence[Tensor], value: Callable[[nn.Module], float]) -> float:
    """How much a value changes per step of a network's weights in a direction."""
    values: list[float] = []
    for sign in (1, -1):
        moved = network()
        with torch.no_grad():
            for weight, d in zip(moved.parameters(), direction, strict=True):
                weight.add_(sign * STEP * d)
        values.append(value(moved))
    return (values[0] - values[1]) / (2 * STEP)


@pytest.fixture(params=OBJECTIVES)
def objective(request: pytest.FixtureRequest) -> Any:
    return OBJECTIVES[request.param]()


@pytest.fixture(params=[*OBJECTIVES, *TERMS])
def anything(request: pytest.FixtureRequest) -> Any:
    return {**OBJECTIVES, **TERMS}[request.param]()


# ---------------------------------------------------------------- contracts


def test_at_radius_zero_it_is_the_clean_loss(objective: Any) -> None:
    net = network()
    here = scene(net, 0.0, EPS)
    expected = F.cross_entropy(network()(here.images), here.labels)
    assert float(objective(here).detach()) == pytest.approx(float(expected.detach()), abs=1e-9)


def test_losses_and_gradients_are_finite(anything: Any) -> None:
    for eps, target in ((EPS, EPS), (0.01, EPS), (0.5, 0.5)):
        net = network()
        loss = anything(scene(net, eps, target))
        assert loss.dim() == 0 and bool(torch.isfinite(loss))
        if loss.requires_grad:
            assert all(bool(torch.isfinite(g).all()) for g in gradients(net, loss))


def test_it_repeats_itself_and_leaves_modes_and_the_global_random_state_alone(anything: Any) -> None:
    state = torch.get_rng_state()
    one, two = network(), network()
    assert torch.equal(anything(scene(one)), anything(scene(two)))
    assert all(part.training for part in one.modules()) and torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in one.parameters())


def test_the_gradient_is_the_difference_quotient(anything: Any) -> None:
    """Along the gradient itself; attacked images are held fixed, so objectives with an attack are left to the next."""
    if hasattr(anything, "attack") or type(anything).__name__.startswith("Nrs"):
        pytest.skip("holds something fixed")
    if type(anything).__name__ == "Gates":
        pytest.skip("there are no gates here; see test_sparse.py")
    target = EPS if type(anything).__name__ == "FastIbp" else 0.03
    net = network()
    direction = gradients(net, anything(scene(net, 0.03, target)))
    length = float(torch.cat([d.flatten() for d in direction]).norm())
    found = quotient(
        [d / length for d in direction], lambda moved: float(anything(scene(moved, 0.03, target)).detach())
    )
    assert found == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("name", ["fgsm", "n-fgsm", "pgd", "trades", "mtl-ibp", "cc-ibp", "exp-ibp", "sabr"])
def test_with_the_attack_held_fixed_the_gradient_is_the_difference_quotient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = OBJECTIVES[name]()
    net = network()
    direction = [torch.sin(torch.arange(p.numel(), dtype=p.dtype)).reshape(p.shape) for p in net.parameters()]
    attacker: Any = objective if callable(getattr(type(objective), "attack", None)) else objective.attack
    found = attacker.attack(scene(net))
    monkeypatch.setattr(type(attacker), "attack", lambda self, here: found)
    exact = sum(float((g * d).sum()) for g, d in zip(gradients(net, objective(scene(net))), direction, strict=True))
    moving = quotient(direction, lambda moved: float(objective(scene(moved)).detach()))
    assert moving == pytest.approx(exact, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", CERTIFIED)
def test_certified_is_at_least_adversarial_is_at_least_clean(name: str) -> None:
    """On one batch, with one set of moments (those of evaluation mode)."""
    net = network().eval()
    here = scene(net)
    clean = F.cross_entropy(net(here.images), here.labels)
    attacked = Pgd(steps=20, step=0.2).attack(here)
    adversarial = F.cross_entropy(net(attacked), here.labels)
    certified = OBJECTIVES[name]()(scene(net))
    assert float(certified.detach()) >= float(adversarial.detach()) >= float(clean.detach())


# ---------------------------------------------------------------- bounds in training


@pytest.mark.parametrize("training", [True, False])
def test_intervals_and_crown_are_those_of_the_engine(training: bool) -> None:
    net = network().train(training)
    here = scene(net)
    lower, upper = images_within(here.images, EPS)
    found = here.bounded
    with evaluating(net):
        graph = trace(net, here.images)
    params = {**graph.values(torch.float64), **here.moments}
    query = Query(graph, params, {graph.input.name: Box(lower, upper)}, here.margins)
    assert torch.allclose(found.ibp(here.margins), Ibp().bound(query).lower, atol=1e-10)
    assert torch.allclose(found.crown(here.margins), Crown("ibp").bound(query).lower, atol=1e-10)
    boxes = Ibp().bound(query).boxes
    for name, layer in found.pre_activations.items():
        source = graph[name].inputs[0]
        assert torch.allclose(layer.ends.lower, boxes[source].lower, atol=1e-10)
        assert torch.allclose(layer.ends.upper, boxes[source].upper, atol=1e-10)
    for name, box in found.crown_boxes().items():
        assert bool((box.lower >= found.boxes[name].lower - 1e-9).all())
        assert bool((box.upper <= found.boxes[name].upper + 1e-9).all())


def test_bounds_hold_for_points_of_the_box_under_the_moments_of_the_batch() -> None:
    net = network()
    here = scene(net)
    lower = here.bounded.ibp(here.margins)
    crown = here.bounded.crown(here.margins)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                part.eval()
        for name, value in here.moments.items():
            net.get_buffer(name).copy_(value)
        random = torch.Generator().manual_seed(0)
        for _ in range(200):
            noise = torch.rand(here.images.shape, dtype=torch.float64, generator=random) * 2 - 1
            logits = net((here.images + EPS * noise.sign()).clamp(0, 1))
            margins = torch.einsum("bsk,bk->bs", here.margins, logits)
            assert bool((margins >= lower - 1e-9).all()) and bool((margins >= crown - 1e-9).all())


def test_moments_have_the_gradient_of_mean_and_variance() -> None:
    net = network()
    here = scene(net)
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    from surebound.training.trainee import MeanAndVariance, moments_of

    found = moments_of({"a": x})
    assert torch.allclose(found["a.running_mean"], x.mean((0, 2, 3)))
    assert torch.allclose(found["a.running_var"], x.var((0, 2, 3), correction=0))
    assert torch.autograd.gradcheck(lambda v: MeanAndVariance.apply(v), (x,))
    constant = moments_of({"a": torch.ones(4, 2, 3, 3, dtype=torch.float64)})
    assert constant["a.running_var"].tolist() == [0, 0] and constant["a.running_mean"].tolist() == [1, 1]
    assert set(here.moments) == {f"{n}.running_{m}" for n in ("norm", "sum", "wide") for m in ("mean", "var")}


def test_running_statistics_move_once_per_pass() -> None:
    net = network()
    _ = OBJECTIVES["ibp"]()(scene(net))
    assert [int(net.get_buffer(f"{n}.num_batches_tracked")) for n in ("norm", "sum", "wide")] == [1, 1, 1]


def test_bounds_refuse_a_norm_that_stands_in_two_places() -> None:
    """It has moments in each of them."""
    norm = nn.BatchNorm2d(2)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.ReLU(), nn.Conv2d(2, 2, 3), norm, nn.Flatten(), nn.Linear(8, 4))
    net = net.double().train()
    with pytest.raises(UsageError, match="running_mean' stands in several places"):
        OBJECTIVES["ibp"]()(scene(net))
    assert bool(torch.isfinite(OBJECTIVES["pgd"]()(scene(net))))


def test_mixing_objectives_use_the_moments_of_the_attacked_images() -> None:
    net = network()
    here = scene(net)
    attacked = OBJECTIVES["mtl-ibp"]().attack.attack(scene(net))
    _ = OBJECTIVES["mtl-ibp"]()(here)
    other = scene(network())
    _ = other.forward(attacked)
    assert all(torch.allclose(here.moments[name], other.moments[name]) for name in other.moments)
    sabr = scene(network())
    _ = OBJECTIVES["sabr"]()(sabr)
    clean = scene(network())
    assert all(torch.allclose(sabr.moments[name], clean.moments[name]) for name in clean.moments)


@pytest.mark.parametrize("piece", [1 << 19, 3, 40])
def test_lines_of_balls_are_crowns_and_their_gradients_right(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written down instead of taped; boxes on one side of 0, with an end at 0, and points, too."""
    monkeypatch.setattr(cached, "AT_ONCE", piece)
    random = torch.Generator().manual_seed(1)
    c = torch.randn(4, 3, 5, dtype=torch.float64, generator=random)
    r = torch.rand(4, 3, 5, dtype=torch.float64, generator=random)
    assert torch.autograd.gradcheck(lambda a, b: Chords.apply(a, b)[1:], (c.requires_grad_(), r.requires_grad_()))
    ends = torch.tensor([[-1.0, 0.0, 0.0, 2.0, -3.0, 0.0, float("nan")], [0.0, 0.0, 1.0, 3.0, -2.0, 4.0, 1.0]])
    for centre, radius in ((c.detach(), r.detach()), (ends.mean(0)[None], (ends[1] - ends[0])[None] / 2)):
        below, slope, intercept = Chords.apply(centre, radius)
        frame = RELU.frame(None, [], centre - radius, centre + radius)  # type: ignore[arg-type]
        lines = RELU.lines(None, frame, RELU.init(None, frame))  # type: ignore[arg-type]
        assert torch.equal(slope.nan_to_num(9.0), lines[2].nan_to_num(9.0))
        assert torch.equal(intercept.nan_to_num(9.0), lines[3].nan_to_num(9.0))  # type: ignore[union-attr]
        assert torch.equal(below[~centre.isnan()], lines[0][~centre.isnan()])


@pytest.mark.parametrize("piece", [1 << 19, 5])
def test_a_dense_layer_of_a_ball_has_the_right_gradients(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "AT_ONCE", piece)
    random = torch.Generator().manual_seed(1)
    c, r, w, b = (
        torch.randn(shape, dtype=torch.float64, generator=random).requires_grad_()
        for shape in ((3, 4), (3, 4), (5, 4), (5,))
    )
    centre, radius = Dense.apply(c, r, w, b)
    assert torch.allclose(centre, F.linear(c, w, b)) and torch.allclose(radius, F.linear(r, w.abs()))
    assert torch.autograd.gradcheck(Dense.apply, (c, r, w, b))


@pytest.mark.parametrize("piece", [1 << 19, 3, 12])
def test_ball_relu_gradients_also_with_shrinking(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "AT_ONCE", piece)
    random = torch.Generator().manual_seed(1)
    c = torch.randn(5, 8, dtype=torch.float64, generator=random).requires_grad_()
    r = torch.rand(5, 8, dtype=torch.float64, generator=random).requires_grad_()
    for shrink in (1.0, 0.8):
        assert torch.autograd.gradcheck(lambda a, b, s=shrink: Relu.apply(a, b, s), (c, r))
    centre, radius = Relu.apply(c, r, 0.8)
    crossing = ((c - r) < 0) & ((c + r) > 0)
    assert torch.allclose((centre + radius)[crossing], 0.8 * (c + r)[crossing])
    assert torch.allclose((centre + radius)[~crossing], (c + r).clamp(min=0)[~crossing])


@pytest.mark.parametrize("both", [False, True])
def test_grad_align_differentiates_one_gradient_or_both(both: bool) -> None:
    """The difference quotient of 1 - cos(g1, g2), where g1 moves with the weights or stays as it is."""

    def gradient(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(net(leaf), labels, reduction="sum"), leaf)[0].flatten(1)

    def value(net: nn.Module, still: nn.Module) -> float:
        here = scene(net)
        noise = torch.rand(here.images.shape, dtype=torch.float64, generator=here.generator)
        first = gradient(net if both else still, here.images, here.labels)
        second = gradient(net, here.images + (2 * noise - 1) * EPS, here.labels)
        return float(1 - F.cosine_similarity(first, second).mean())

    net = network()
    found = grad_align(scene(net), both)
    assert float(found.detach()) == pytest.approx(value(network(), network()), abs=1e-12)
    direction = gradients(net, found)
    length = float(torch.cat([d.flatten() for d in direction]).norm())
    moving = quotient([d / length for d in direction], lambda moved: value(moved, network()))
    assert moving == pytest.approx(length, rel=1e-4)


# ---------------------------------------------------------------- fusion


@pytest.mark.parametrize("limit", [1 << 22, 1])
def test_fused_loss_is_between_the_worst_point_and_the_loss_of_the_bounds(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "AT_ONCE", limit)
    net = network().eval()
    here = scene(net)
    low, up = differences(here.bounded, here.labels)
    rows = -margin_rows(here.labels, 4, here.images)
    crown_up = -here.bounded.crown(-rows)
    of_ibp = torch.cat([up.gather(1, here.labels.unsqueeze(1)), up], 1)
    assert torch.equal(of_ibp[:, 0], torch.zeros(6, dtype=torch.float64))
    ibp = fused(here.bounded, here.labels, 0.0)
    assert float(ibp.detach()) == pytest.approx(float(up.logsumexp(1).mean().detach()), abs=1e-9)
    assert float(ibp.detach()) == pytest.approx(float(of_margins(here.bounded.ibp(here.margins)).detach()), abs=1e-9)
    crown = fused(here.bounded, here.labels, 1.0)
    assert float(crown.detach()) <= float(ibp.detach()) + 1e-9
    assert float(crown.detach()) >= float(F.cross_entropy(net(Pgd(20, 0.2).attack(here)), here.labels).detach()) - 1e-9
    zero = torch.zeros(6, 1, dtype=torch.float64)
    single = torch.cat([zero, torch.minimum(crown_up, up[up != 0].reshape(6, 3))], 1).logsumexp(1).mean()
    assert float(crown.detach()) < float(single.detach()) + 0.2
    assert bool((low <= up).all())


def test_fused_loss_of_two_logits_that_move_against_each_other_is_exact() -> None:
    """z = (0, a t, -a t) for t in [-1, 1]: the sum is 1 + 2 cosh(a t), its chords add up to 1 + 2 cosh(a)."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 3)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[0.0], [2.4], [-2.4]]))
        net[1].bias.copy_(torch.tensor([0.0, -1.2, 1.2]))
    x = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    here = Scene(Trainee(net, x), x, torch.tensor([0]), 0.5, 0.5, torch.Generator())
    expected = torch.log(1 + 2 * torch.cosh(torch.tensor(1.2, dtype=torch.float64)))
    assert torch.allclose(fused(here.bounded, here.labels, 1.0), expected)


def test_distances_between_rows_have_the_right_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    w = torch.randn(5, 3, dtype=torch.float64, generator=random).requires_grad_()
    r = torch.rand(4, 3, dtype=torch.float64, generator=random).requires_grad_()
    labels = torch.tensor([0, 3, 3, 1])
    for limit in (1 << 20, 1):
        monkeypatch.setattr(fusion, "AT_ONCE", limit)
        assert torch.autograd.gradcheck(lambda a, b: fusion.Distance.apply(a, b, labels), (w, r))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_fused_loss_is_finite_at_hostile_scales(scale: float) -> None:
    net = network().float()
    with torch.no_grad():
        net.last.weight.mul_(scale)  # pyright: ignore[reportAttributeAccessIssue]
    here = scene(net)
    x = here.images.float()
    here = Scene(Trainee(net, x), x, here.labels, EPS, EPS, torch.Generator())
    for beta in (0.0, 0.5, 1.0):
        loss = fused(here.bounded, here.labels, beta)
        assert bool(torch.isfinite(loss))
        assert all(bool(torch.isfinite(g).all()) for g in gradients(net, loss))
        here._bounded.clear()
        here._clean = here._given = None


def test_cutting_the_classes_changes_neither_value_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[tuple[Tensor, list[Tensor]]] = []
    for limit in (1 << 22, 50):
        monkeypatch.setattr(fusion, "AT_ONCE", limit)
        net = network()
        here = scene(net)
        loss = fused(here.bounded, here.labels, 0.5)
        results.append((loss.detach(), gradients(net, loss)))
    (a, of_a), (b, of_b) = results
    assert torch.allclose(a, b) and all(torch.allclose(x, y) for x, y in zip(of_a, of_b, strict=True))


# ---------------------------------------------------------------- terms


def test_stability_losses_are_written_out_by_hand() -> None:
    net = network()
    here = scene(net)
    ends = {name: layer.ends for name, layer in here.bounded.pre_activations.items()}
    plain = torch.cat([(-torch.tanh(1 + e.lower * e.upper)).flatten() for e in ends.values()]).mean()
    assert torch.allclose(RsLoss()(scene(network())), plain)
    scales = dict(zip(ends, (net.norm, net.sum, net.wide), strict=True))  # pyright: ignore[reportAttributeAccessIssue]
    parts = {
        name: -torch.tanh(1 + e.lower * e.upper / scales[name].weight.square().reshape(-1, *[1] * (e.lower.dim() - 2)))
        for name, e in ends.items()
    }
    every = torch.cat([part.flatten() for part in parts.values()]).mean()
    assert torch.allclose(NrsLoss()(scene(network())), every)
    channels = torch.cat([part.transpose(0, 1).flatten(1).mean(1) for part in parts.values()]).mean()
    assert torch.allclose(NrsReleased()(scene(network())), channels)


def test_scales_get_no_gradient_from_nrs_but_some_from_the_released_form() -> None:
    for loss, expected in ((NrsLoss(), True), (NrsReleased(), False)):
        net = network()
        found = torch.autograd.grad(loss(scene(net)), [net.norm.weight], allow_unused=True)[0]  # pyright: ignore[reportAttributeAccessIssue]
        assert (found is None or not bool(found.any())) == expected


@pytest.mark.parametrize("released", [False, True])
def test_nrs_has_the_difference_quotient_of_what_it_does_not_hold_fixed(
    released: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held fixed: the scales, also in the bounds, and the moments; in the released form the denominators only."""
    loss, scales = (NrsReleased() if released else NrsLoss()), list[Tensor | None]()

    def noted(ends: Any, scale: Tensor | None, tiny: float) -> Tensor:
        scales.append(None if scale is None else scale.detach().clone())
        return stable(ends, scale, tiny)

    monkeypatch.setattr(regularisers, "stable", noted)
    net, here = network(), scene(network())
    moments = {name: value.detach() for name, value in here.moments.items()}
    direction = gradients(net, loss(scene(net)))
    length = float(torch.cat([d.flatten() for d in direction]).norm())

    def value(moved: nn.Module) -> float:
        order = iter(scales)
        monkeypatch.setattr(regularisers, "stable", lambda ends, scale, tiny: stable(ends, next(order), tiny))
        there = scene(moved)
        if not released:
            there._given, there._moments = {}, moments
        return float(loss(there).detach())

    assert quotient([d / length for d in direction], value) == pytest.approx(length, rel=1e-4)


def test_full_radius_or_the_scheduled_one() -> None:
    assert not torch.equal(RsLoss(True)(scene(network(), 0.01, EPS)), RsLoss(False)(scene(network(), 0.01, EPS)))
    assert torch.equal(RsLoss(True)(scene(network(), EPS, EPS)), RsLoss(False)(scene(network(), EPS, EPS)))


def test_the_warm_up_terms_vanish_at_the_end_of_the_ramp() -> None:
    term = TERMS["fast-ibp"]()
    assert float(term(scene(network(), EPS, EPS))) == 0
    assert float(term(scene(network(), 0.01, EPS)).detach()) > 0
    half, full = term(scene(network(), 0.03, 0.06)), term(scene(network(), 0.03, 1e9))
    assert float(half.detach()) == pytest.approx(0.5 * float(full.detach()), rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-20, 1e-30])
def test_balance_does_not_depend_on_how_large_centres_are(scale: float) -> None:
    centre = (scale * torch.tensor([[1.0, -3.0, 2.0, -6.0]])).requires_grad_()
    means, squares = TERMS["fast-ibp"]().balance(Ball(centre, torch.zeros_like(centre)))
    assert float(means.detach()) == pytest.approx(0.5 - 3 / 9) and float(squares.detach()) == 0
    (gradient,) = torch.autograd.grad(means + squares, centre)
    expected = torch.tensor([[-1 / 9, -3 / 81, -1 / 9, -3 / 81]]) / scale
    assert torch.allclose(gradient, expected, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in TERMS if name != "l1-weights"])
def test_terms_about_neurons_are_zero_where_there_are_none(name: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double()
    assert float(TERMS[name]()(scene(net.train(), 0.01, EPS))) == 0


def test_added_terms_and_teachers() -> None:
    net, teacher = network(), network(1).eval()
    here = scene(net)
    total = Plus(Standard(), TERMS["l1-weights"](), 0.1)(here)
    weights = sum(
        p.abs().sum()
        for n, p in net.named_parameters()
        if n in ("first.weight", "second.weight", "flat.weight", "last.weight")
    )
    assert torch.allclose(total, F.cross_entropy(here.clean, here.labels) + 0.1 * weights)
    taught = Distilled(Standard(), teacher, 2.0, 3.0)(scene(net))
    p, q = (teacher(here.images) / 3).softmax(1), (here.clean / 3).softmax(1)
    kl = (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(taught, F.cross_entropy(here.clean, here.labels) + 2.0 * 9 * kl)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_ops_without_a_rule_of_their_own_take_the_one_for_ends() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 4)).double()
    here = scene(net.train())
    lower, upper = images_within(here.images, EPS)
    with evaluating(net):
        graph = trace(net, here.images)
    graph = prepare(graph)
    query = Query(graph, graph.values(torch.float64), {graph.input.name: Box(lower, upper)}, here.margins)
    assert torch.allclose(here.bounded.ibp(here.margins), Ibp().bound(query).lower, atol=1e-9)


def test_the_demos_network_can_be_trained_with_every_objective(objective: Any) -> None:
    net = digits_cnn(0, (2, 3), 5).train()
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = objective(Scene(Trainee(net, x), x, torch.arange(4), 0.1, 0.1, torch.Generator().manual_seed(0)))
    assert bool(torch.isfinite(loss)) and loss.requires_grad
