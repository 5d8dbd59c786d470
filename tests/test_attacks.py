"""Attacks on images: the contract that each keeps, closed forms on linear networks, strength on a trained one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import Network, cross_entropy, margin
from surebound.attacks.apgd import Apgd, checkpoints
from surebound.attacks.ascent import Ascent
from surebound.attacks.attack import Attack, Attacked, Task
from surebound.attacks.balls import L2, LINF, Ball
from surebound.attacks.carlini_wagner import CarliniWagner
from surebound.attacks.deepfool import DeepFool
from surebound.attacks.image_pgd import Pgd
from surebound.attacks.losses import Targeted, difference, dlr, likeliest, targeted_dlr
from surebound.attacks.single_step import FAST_FGSM, FGSM, N_FGSM, R_FGSM, SingleStep, image_itself, noise_start
from surebound.attacks.table import ATTACKS
from surebound.data.dataset import Part
from surebound.data.digits import load_digits
from surebound.errors import DataError, UsageError
from surebound.linear.maps import Dense
from surebound.measures.accuracy import clean_accuracy, right
from surebound.measures.robustness import r_2, r_inf, robustness
from surebound.nets.small import digits_cnn
from surebound.regions import LpBall
from surebound.training.loop import Group, Run, train
from surebound.training.objectives.standard import Standard


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(weight: Tensor, bias: Tensor) -> nn.Sequential:
    network = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0])).to(weight.dtype)
    network[1].weight.data, network[1].bias.data = weight.clone(), bias.clone()
    return network


def cases(count: int, classes: int, pixels: int = 12, low: float = 0.3) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A linear network and images of which it is right; pixels from low to 1 - low leave room for small steps."""
    weight = torch.randn(classes, pixels, dtype=torch.float64, generator=random(5))
    network = linear(weight, weight.sum(1) / -2)
    x = low + (1 - 2 * low) * torch.rand(count, 1, 3, pixels // 3, dtype=torch.float64, generator=random(6))
    return network, x, network(x).argmax(1).detach()


def nearest_boundary(network: nn.Sequential, x: Tensor, labels: Tensor, p: float) -> Tensor:
    """min_k |f_k| / |w_k|_p over wrong classes: a linear network's exact distance, in the dual norm of p."""
    weight, logits = network[1].weight.detach(), network(x).detach()
    gap = logits.gather(1, labels.unsqueeze(1)) - logits
    norms = (weight[labels].unsqueeze(1) - weight.unsqueeze(0)).norm(p=p, dim=2)
    return torch.where(norms > 0, gap / norms, torch.inf).amin(1)


# ---------------------------------------------------------------- the contract

QUICK: Mapping[str, Attack] = {
    "apgd-targeted": replace(ATTACKS["apgd-targeted"], steps=3),
    "carlini-wagner": CarliniWagner(rounds=3, steps=20, rate=0.1, weight=1.0),
}


def quick(name: str) -> Attack:
    """The attack as in the table, with fewer steps where it is slow."""
    attack = QUICK.get(name, ATTACKS[name])
    return replace(attack, steps=8) if isinstance(attack, Ascent) and name not in QUICK else attack


class Setting:
    """A network with batch statistics and dropout, in mixed modes, that is wrong on some of nine images."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(64, 5)
        ).to(dtype)
        self.network[1].eval()
        self.x = torch.rand(9, 1, 4, 4, dtype=dtype, generator=random(1))
        self.x[0], self.x[1, :, :2] = 0, 1
        self.labels = self.logits(self.x).argmax(1)
        self.labels[3:5] = (self.labels[3:5] + 1) % 5

    def logits(self, x: Tensor) -> Tensor:
        """In evaluation mode."""
        modes = [part.training for part in self.network]
        with torch.no_grad():
            found = self.network.eval()(x)
        for part, mode in zip(self.network, modes, strict=True):
            part.training = mode
        self.network.training = True
        return found

    def radius(self, attack: Attack) -> float:
        """At which some images give way and some do not."""
        return 0.02 if attack.ball is LINF else 0.07

    def attack(self, attack: Attack, eps: float | None = None, seed: int = 0) -> Attacked:
        chosen = self.radius(attack) if eps is None else eps
        return attack(self.network, self.x, self.labels, chosen, random(seed))


every_attack = pytest.mark.parametrize("name", ATTACKS)


@every_attack
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_images_stay_within_eps_and_range_and_successes_are_true(name: str, dtype: torch.dtype) -> None:
    setting, attack = Setting(dtype), quick(name)
    for scale in (1.0, 4.0):
        eps = scale * setting.radius(attack)
        found = setting.attack(attack, eps)
        step = found.images - setting.x
        distance = step.double().flatten(1).norm(p=math.inf if attack.ball is LINF else 2, dim=1)
        assert float(distance.max()) <= eps + 1e-6
        assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1
        torch.testing.assert_close(found.distances.double(), distance, rtol=1e-6, atol=0)
        margins = margin(setting.logits(found.images), setting.labels)
        assert torch.equal(found.margins, margins) and torch.equal(found.success, margins >= 0)
        assert found.images.dtype == found.margins.dtype == found.distances.dtype == dtype
        assert not found.images.requires_grad and found.images.data_ptr() != setting.x.data_ptr()


@every_attack
def test_attacks_find_something_but_not_everything(name: str) -> None:
    setting, attack = Setting(), quick(name)
    near, far = setting.attack(attack), setting.attack(attack, 0.5 if attack.ball is LINF else 3.0)
    assert 2 <= int(near.success.sum()) < 9 and int(far.success.sum()) > 2
    assert float(far.distances.max()) > 0


@every_attack
def test_images_already_classified_wrongly_are_left_as_they_are(name: str) -> None:
    setting = Setting()
    found = setting.attack(quick(name))
    assert torch.equal(found.images[3:5], setting.x[3:5])
    assert found.success[3:5].all() and found.distances[3:5].tolist() == [0, 0]


@every_attack
def test_nothing_is_left_to_attack_where_the_network_is_wrong_about_every_image(name: str) -> None:
    """Many networks flatten with view(len(x), -1), which fails for no images."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    network.forward = lambda x: network[1](x.view(len(x), -1))  # pyright: ignore[reportIncompatibleMethodOverride]
    x = Setting().x
    found = quick(name)(network, x, (network(x).argmax(1) + 1) % 5, 0.1, random())
    assert torch.equal(found.images, x) and bool(found.success.all())


@every_attack
def test_radius_zero_is_the_image_itself(name: str) -> None:
    setting = Setting()
    found = setting.attack(quick(name), 0.0)
    assert torch.equal(found.images, setting.x)
    assert found.success.tolist() == [k in (3, 4) for k in range(9)]


@every_attack
def test_the_network_is_left_as_it_was(name: str) -> None:
    setting = Setting()
    network = setting.network
    network[5].weight.grad = torch.ones_like(network[5].weight)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [part.training for part in network.modules()]
    drawn = torch.get_rng_state()
    setting.attack(quick(name))
    assert [part.training for part in network.modules()] == modes and modes[1:] == [True, False, *[True] * 4]
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert [p.grad is None for p in network.parameters()] == [True] * 4 + [False, True]
    assert bool((network[5].weight.grad == 1).all())
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(parameter.requires_grad for parameter in network.parameters())


@every_attack
def test_the_same_seed_gives_the_same_images_zero_included(name: str) -> None:
    setting, attack = Setting(), quick(name)
    one, two, other = (setting.attack(attack, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.images, two.images) and torch.equal(one.margins, two.margins)
    random_starts = isinstance(attack, SingleStep) and attack.start is not image_itself
    assert not random_starts or not torch.equal(one.images, other.images)


@every_attack
def test_a_batch_is_its_samples_one_by_one(name: str) -> None:
    attack = quick(name)
    if isinstance(attack, SingleStep) and attack.start is not image_itself:
        pytest.skip("its random numbers are drawn for the whole batch")
    if isinstance(attack, Ascent):
        attack = replace(attack, restarts=1)
    setting = Setting(torch.float64)
    eps, together = setting.radius(attack), setting.attack(attack)
    for k in range(9):
        label = setting.labels[k : k + 1].to(torch.int32)
        alone = attack(setting.network, setting.x[k : k + 1], label, eps, random())
        torch.testing.assert_close(alone.images[0], together.images[k], rtol=0, atol=1e-9)
        assert bool(alone.success[0]) == bool(together.success[k])


class NanWhere(nn.Module):
    """A network with NaN for answers as soon as a pixel is larger than a limit."""

    def __init__(self, inner: nn.Module, limit: float) -> None:
        super().__init__()
        self.inner, self.limit = inner, limit

    def forward(self, x: Tensor) -> Tensor:
        return torch.where((x > self.limit).flatten(1).any(1, keepdim=True), torch.nan, self.inner(x))


class RootOfNothing(nn.Module):
    """A network with finite answers whose gradient at 0 is NaN."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + (0 * x).sqrt().sum()


@every_attack
def test_nan_is_an_error_and_no_success(name: str) -> None:
    setting, attack = Setting(), quick(name)
    labels = setting.labels
    with pytest.raises(DataError, match="the network's logits: NaN or infinite for 9 of 9 images"):
        attack(NanWhere(setting.network, -1.0), setting.x, labels, 0.1, random())
    halved = setting.x / 2
    with pytest.raises(DataError, match="logits: NaN or infinite for"):
        attack(NanWhere(setting.network, 0.5), halved, setting.logits(halved).argmax(1), 3.0, random())
    modes = [part.training for part in setting.network.modules()]
    network = RootOfNothing(setting.network)
    with pytest.raises(DataError, match=r"gradients? of .* by the images: NaN or infinite for"):
        attack(network, setting.x, labels, 0.1, random())
    assert [part.training for part in setting.network.modules()] == modes and network.training


@every_attack
def test_what_makes_no_sense_is_refused_with_a_reason(name: str) -> None:
    setting, attack = Setting(), quick(name)
    x, labels, network = setting.x, setting.labels, setting.network
    for eps in (-0.1, math.nan, *([] if attack.minimal else [math.inf])):
        with pytest.raises(UsageError, match="eps must be a finite number >= 0"):
            attack(network, x, labels, eps, random())
    for wrong in (x * 255, torch.full_like(x, math.nan)):
        with pytest.raises(DataError, match=r"values in \[0, 1\]; divide by the largest"):
            attack(network, wrong, labels, 0.1, random())
    with pytest.raises(DataError, match="floating point.*uint8"):
        attack(network, x.to(torch.uint8), labels, 0.1, random())
    for wrong in (labels[:4], labels.double(), labels.bool(), labels.unsqueeze(1)):
        with pytest.raises(DataError, match="labels must be integers, one for each of 9 images"):
            attack(network, x, wrong, 0.1, random())
    with pytest.raises(DataError, match="the network has 5 classes, but the labels run from 0 to 8"):
        attack(network, x, torch.arange(9), 0.1, random())
    with pytest.raises(DataError, match=r"needs a network with logits \[9, at least 2 classes\].* gives \[9, 1\]"):
        attack(nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), x, labels, 0.1, random())


@every_attack
def test_no_images_give_no_images(name: str) -> None:
    found = quick(name)(Setting().network, torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64), 0.1, random())
    assert found.images.shape == (0, 1, 4, 4) and found.success.shape == found.distances.shape == (0,)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Pgd(0), "steps and restarts must be at least 1, got 0 and 2"),
        (lambda: Apgd(restarts=0), "steps and restarts must be at least 1, got 100 and 0"),
        (lambda: DeepFool(overshoot=0.02), "overshoot at least 1; got 50, 10 and 0.02"),
        (lambda: CarliniWagner(rounds=0), "rounds and steps must be at least 1"),
        (lambda: CarliniWagner(weight=0.0), "rate and weight must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(made, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made()


# ---------------------------------------------------------------- the balls

both_balls = pytest.mark.parametrize("ball", [LINF, L2], ids=["linf", "l2"])


@both_balls
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.4, 2.0, 50.0])
def test_projections_are_the_nearest_points_of_ball_and_box(ball: Ball, eps: float) -> None:
    """p is nearest to z exactly when (z - p).(q - p) <= 0 for all q of the convex set."""
    x = torch.rand(6, 1, 2, 4, dtype=torch.float64, generator=random()).round(decimals=1)
    x[0], x[1, :, :1] = 0, 1
    for spread in (0.01, 1.0, 30.0):
        z = x + spread * torch.randn(x.shape, dtype=x.dtype, generator=random(1))
        p = ball.project(z, x, eps)
        assert float(ball.length(p - x).max()) <= eps + 1e-12 and float(p.min()) >= 0 and float(p.max()) <= 1
        for seed in range(20):
            q = ball.project(ball.start(x, eps, random(seed)), x, eps)
            assert float(((z - p) * (q - p)).flatten(1).sum(1).max()) <= 1e-9 * max(1.0, spread)
        torch.testing.assert_close(ball.project(p, x, eps), p, rtol=0, atol=1e-12)


@both_balls
def test_random_starts_fill_the_ball(ball: Ball) -> None:
    x = torch.full((4000, 1, 1, 2), 0.5, dtype=torch.float64)
    step = ball.start(x, 0.2, random()) - x
    sizes = ball.length(step)
    assert 0.19 < float(sizes.max()) <= 0.2 + 1e-12
    assert float((sizes < 0.1).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert step.flatten(1).mean(0).abs().max() < 0.01


@both_balls
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_steepest_step_has_norm_one_whatever_the_gradient_and_zero_for_none(ball: Ball, size: float) -> None:
    gradient = size * torch.randn(3, 1, 2, 2, generator=random())
    gradient[2] = 0
    step = ball.steepest(gradient)
    assert ball.length(step).tolist() == pytest.approx([1, 1, 0], abs=1e-6)
    assert bool((step * gradient >= 0).all())


# ---------------------------------------------------------------- single steps


def test_fgsm_is_the_best_that_can_be_done_to_a_linear_network_of_two_classes() -> None:
    network, x, labels = cases(20, 2)
    eps = 0.03
    found = FGSM(network, x, labels, eps, random())
    size = (network[1].weight[0] - network[1].weight[1]).detach().abs().sum()
    before = margin(network(x), labels).detach()
    torch.testing.assert_close(found.margins, before + eps * size)
    exact = nearest_boundary(network, x, labels, 1)
    assert torch.equal(found.success, exact <= eps) and 0 < int(found.success.sum()) < 20


def test_r_fgsm_moves_each_pixel_by_eps_or_not_at_all() -> None:
    network, x, labels = cases(20, 2)
    found = R_FGSM(network, x, labels, 0.1, random())
    best = FGSM(network, x, labels, 0.1, random())
    moved = (found.images - x).abs() > 0.05
    torch.testing.assert_close((found.images - x)[moved], (best.images - x)[moved])
    assert float((found.images - x)[~moved].abs().max()) < 1e-12
    assert float(moved.double().mean()) == pytest.approx(0.5, abs=0.1)


def test_noise_starts_are_projected_after_the_step() -> None:
    network, x, labels = cases(20, 2)
    sign = (network[1].weight[1] - network[1].weight[0]).detach().sign().reshape(x.shape[1:])
    toward = torch.where(labels.reshape(-1, 1, 1, 1) == 0, sign, -sign)
    noise = (2 * torch.rand(x.shape, dtype=x.dtype, generator=random(3)) - 1) * 0.1
    fast = FAST_FGSM(network, x, labels, 0.1, random(3)).images - x
    wide = N_FGSM(network, x, labels, 0.1, random(3)).images - x
    torch.testing.assert_close(fast, (noise + 0.125 * toward).clamp(-0.1, 0.1))
    torch.testing.assert_close(wide, (2 * noise + 0.1 * toward).clamp(-0.1, 0.1))
    assert float((noise_start(x, 0.1, random(3)) - x).abs().max()) > 0.19


# ---------------------------------------------------------------- losses


def test_dlr_is_a_ratio_of_differences() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0], [0.0, 4.0, 5.0, 1.0]])
    labels, targets = torch.tensor([0, 1]), torch.tensor([3, 0])
    assert dlr(logits, labels).tolist() == pytest.approx([-1 / 3, 1 / 4])
    assert dlr(7 * logits - 3, labels).tolist() == pytest.approx([-1 / 3, 1 / 4])
    assert targeted_dlr(logits, labels, targets).tolist() == pytest.approx([-4 / 3.5, -4 / 4.5])
    assert difference(logits, labels, targets).tolist() == [-4, -4]
    assert math.isfinite(float(dlr(torch.ones(1, 3), torch.tensor([0]))))


def test_dlr_of_too_few_classes_names_the_alternative() -> None:
    for classes, loss, message in (
        (2, dlr, "the loss dlr needs at least 3 classes, the network has 2; use margin"),
        (3, Targeted(targeted_dlr), "the loss targeted_dlr needs at least 4 classes, the network has 3; use diff"),
    ):
        network, x, labels = cases(4, classes)
        with pytest.raises(UsageError, match=message):
            Apgd(5, loss=loss)(network, x, labels, 0.1, random())


def test_targets_are_wrong_classes_the_likeliest_first() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.0], [2.0, 2.0, 2.0]])
    assert likeliest(logits, torch.tensor([2, 1])).tolist() == [[1, 0], [0, 2]]
    assert likeliest(logits, torch.tensor([0, 0]), 1).tolist() == [[1], [1]]


def test_targets_find_what_the_margin_does_not() -> None:
    """The runner-up hardly gains anything; the third class, behind it, would."""
    weight = torch.tensor([[0.0, 0.0], [0.01, 0.0], [0.0, 2.0]])
    network, x, labels = linear(weight, torch.tensor([0.0, -0.105, -1.3])), torch.full((1, 2), 0.5), torch.tensor([0])
    attack = Pgd(steps=10, restarts=1)
    assert not bool(attack(network, x, labels, 0.2, random()).success)
    assert bool(replace(attack, loss=Targeted())(network, x, labels, 0.2, random()).success)
    for target, reached in ((1, False), (2, True)):

        def chosen(logits: Tensor, labels: Tensor, target: int = target) -> Tensor:
            return torch.full_like(labels.unsqueeze(1), target)

        found = replace(attack, loss=Targeted(targets=chosen))(network, x, labels, 0.2, random())
        assert bool(found.success) == reached
        assert float((found.images - x)[0, 2 - target]) == 0 and float((found.images - x)[0, target - 1]) > 0.1


# ---------------------------------------------------------------- ascent


@both_balls
@pytest.mark.parametrize("attack", [Pgd(20, 1), Apgd(20), Pgd(20, 1, cross_entropy), Apgd(20, loss=cross_entropy)])
def test_ascent_reaches_the_closed_form_of_two_linear_classes(attack: Ascent, ball: Ball) -> None:
    network, x, labels = cases(20, 2, low=0.2)
    attack = replace(attack, ball=ball)
    exact = nearest_boundary(network, x, labels, 1 if ball is LINF else 2)
    eps = float(exact.sort().values[9:11].mean())
    found = attack(network, x, labels, eps, random())
    assert torch.equal(found.success, exact <= eps) and int(found.success.sum()) == 10
    size = (network[1].weight[0] - network[1].weight[1]).detach().norm(p=1 if ball is LINF else 2)
    lost = ~found.success
    torch.testing.assert_close(found.margins[lost], (size * (eps - exact))[lost], rtol=1e-6, atol=1e-9)


def test_ascent_at_the_edge_of_the_box_reaches_the_exact_maximum_over_ball_and_box() -> None:
    network, x, labels = cases(12, 2, low=0.0)
    x = x.round(decimals=0).mul(0.98).add(0.01)
    labels, eps = network(x).argmax(1).detach(), 0.05
    rows = (network[1].weight[labels] - network[1].weight[1 - labels]).detach().reshape(12, 1, *x.shape[1:])
    bias = (network[1].bias[labels] - network[1].bias[1 - labels]).detach()
    ball = LpBall(x, torch.full((12,), eps, dtype=x.dtype), 2, torch.zeros_like(x), torch.ones_like(x))
    exact = -(ball.minimise(Dense(rows)).squeeze(1) + bias)
    found = Apgd(30, ball=L2)(network, x, labels, eps, random())
    assert torch.equal(found.success, exact >= 0)
    torch.testing.assert_close(found.margins[~found.success], exact[~found.success], rtol=0, atol=1e-4)


def test_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(1) == (1,) and checkpoints(10) == (3, 5, 6, 7, 8, 9, 10)


def test_apgd_halves_its_steps_where_they_overshoot() -> None:
    """The loss -|x - peak| is missed by fixed steps; halved ones close in, each sample on its own peak."""

    class Peak(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rise = 10 * (x.flatten(1) - torch.tensor([[0.5], [0.61]], dtype=x.dtype)).abs().sum(1, keepdim=True)
            return torch.cat([1 + rise, torch.zeros_like(rise)], 1)

    x, labels = torch.full((2, 1), 0.45, dtype=torch.float64), torch.tensor([0, 0])
    found = Apgd(100)(Peak(), x, labels, 0.3, random())
    fixed = Pgd(100, 1, step=2.0)(Peak(), x, labels, 0.3, random())
    assert (found.images[:, 0] - torch.tensor([0.5, 0.61])).abs().max() < 1e-3
    assert bool((found.margins >= fixed.margins).all())


class Seen(nn.Module):
    """A network that notes the points it is asked about."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.points: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.points.append(x.detach().clone())
        return self.inner(x)


class Waves(nn.Module):
    """Right everywhere, by a margin with hills and valleys."""

    def forward(self, x: Tensor) -> Tensor:
        turned = x.flatten(1) @ torch.randn(6, 6, dtype=x.dtype, generator=random(8))
        hills = (9 * turned).sin().sum(1, keepdim=True) - 2 * turned.square().sum(1, keepdim=True)
        return torch.cat([torch.full_like(hills, 50.0), hills], 1)


def algorithm_1(
    network: nn.Module, x: Tensor, label: Tensor, ball: Ball, eps: float, steps: int
) -> tuple[list[Tensor], set[tuple[bool, bool]]]:
    """Croce & Hein's algorithm 1 for one image, word by word, from the image: the points x_0 ... x_N, and which
    combinations of its two conditions were met at checkpoints.

    Written with lists of everything that was, so that its conditions read as they are printed.
    """

    def f(point: Tensor) -> tuple[float, Tensor]:
        leaf = point.clone().requires_grad_(True)
        value = margin(network(leaf), label).sum()
        return float(value.detach()), torch.autograd.grad(value, leaf)[0]

    def moved(point: Tensor, eta: float) -> Tensor:
        return ball.project(point + eta * ball.steepest(f(point)[1]), x, eps)

    marks, met = [0, *checkpoints(steps)], set()
    eta, last = 2 * eps, x
    points = [x, moved(x, eta)]
    values, used = [f(point)[0] for point in points], {0: eta}
    for k in range(1, steps):
        current, used[k] = points[k], eta
        if k in marks:
            before = marks[marks.index(k) - 1]
            rises = sum(values[i + 1] > values[i] for i in range(before, k))
            few = rises < 0.75 * (k - before)
            same = used[before] == used[k] and max(values[: before + 1]) == max(values[: k + 1])
            met.add((few, same))
            if few or same:
                eta /= 2
                current = points[values.index(max(values))]
        z = moved(current, eta)
        points.append(ball.project(current + 0.75 * (z - current) + 0.25 * (current - last), x, eps))
        values.append(f(points[-1])[0])
        last = current
    return points, met


def test_apgd_visits_the_points_of_the_papers_algorithm() -> None:
    met: set[tuple[bool, bool]] = set()
    for ball, steps, eps in ((LINF, 16, 0.1), (LINF, 50, 0.2), (L2, 50, 0.2)):
        for k in range(5):
            x, label = torch.rand(1, 6, dtype=torch.float64, generator=random(k)), torch.tensor([0])
            network = Seen(Waves())
            Apgd(steps, ball=ball)(network, x, label, eps, random())
            visited = network.points[1:-1]
            expected, conditions = algorithm_1(Waves(), x, label, ball, eps, steps)
            met |= conditions
            assert len(visited) == len(expected) == steps + 1
            torch.testing.assert_close(torch.cat(visited), torch.cat(expected), rtol=0, atol=1e-7)
    assert {(False, False), (True, False), (False, True)} <= met


# ---------------------------------------------------------------- nearest wrong answers


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_deepfool_on_a_linear_network_is_the_distance_times_its_overshoot(classes: int) -> None:
    network, x, labels = cases(20, classes, low=0.4)
    for overshoot in (1.02, 1.3):
        found = DeepFool(overshoot=overshoot)(network, x, labels, math.inf, random())
        exact = nearest_boundary(network, x, labels, 2)
        inside = exact * overshoot < 0.4
        assert found.success.all() and int(inside.sum()) > 15
        torch.testing.assert_close(found.distances[inside], overshoot * exact[inside], rtol=1e-9, atol=0)


def test_deepfool_lets_only_the_likeliest_classes_compete() -> None:
    network, x, labels = cases(20, 7, low=0.4)
    all_of_them = DeepFool()(network, x, labels, math.inf, random())
    two = DeepFool(classes=2)(network, x, labels, math.inf, random())
    assert bool((two.distances >= all_of_them.distances - 1e-9).all())
    assert bool((two.distances > all_of_them.distances + 1e-3).any())


def test_deepfool_stands_still_without_a_gradient() -> None:
    network = linear(torch.zeros(2, 4), torch.tensor([1.0, 0.0]))
    x = torch.rand(3, 4, generator=random())
    found = DeepFool()(network, x, torch.zeros(3, dtype=torch.int64), math.inf, random())
    assert torch.equal(found.images, x) and not found.success.any()


@pytest.mark.parametrize("classes", [2, 4])
def test_carlini_wagner_on_a_linear_network_is_close_to_the_distance_of_the_class_it_reaches(classes: int) -> None:
    """Which is the nearest class if there is one only; of several, descent may settle on a farther one."""
    network, x, labels = cases(12, classes, low=0.4)
    found = CarliniWagner(rounds=8, steps=150, rate=0.003)(network, x, labels, math.inf, random())
    assert found.success.all()
    weight, logits, each = network[1].weight.detach(), network(x).detach(), torch.arange(12)
    reached = likeliest(network(found.images).detach(), labels, 1).squeeze(1)
    gap = logits[each, labels] - logits[each, reached]
    assert bool((found.distances >= nearest_boundary(network, x, labels, 2)).all())
    torch.testing.assert_close(
        found.distances, gap / (weight[labels] - weight[reached]).norm(dim=1), rtol=0.02, atol=5e-4
    )


@dataclass(frozen=True)
class Scripted(CarliniWagner):
    """Descents whose ends are written down: for each round the steps taken, 0 where there was no success."""

    script: tuple[tuple[float, float], ...] = ()
    weights: list[list[float]] = field(default_factory=list)

    def descend(self, task: Task, x: Tensor, labels: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        sizes = torch.tensor(self.script[len(self.weights)], dtype=x.dtype)
        self.weights.append(c.tolist())
        return x + sizes.reshape(-1, 1), torch.where(sizes > 0, sizes.square(), torch.inf)


def test_carlini_wagner_searches_c_for_each_sample_and_keeps_the_nearest_of_all_descents() -> None:
    network = linear(torch.tensor([[0.0], [10.0]]), torch.tensor([0.0, -2.01]))
    x, labels = torch.full((2, 1), 0.2), torch.tensor([0, 0])
    script = ((0.0, 0.4), (0.3, 0.0), (0.1, 0.2), (0.2, 0.3))
    attack = Scripted(4, weight=0.5, script=script)
    found = attack(network, x, labels, math.inf, random())
    assert found.distances.tolist() == pytest.approx([0.1, 0.2]) and found.success.all()
    assert [c[0] for c in attack.weights] == [0.5, 5, 2.75, 1.625]
    assert [c[1] for c in attack.weights] == [0.5, 0.25, 0.375, 0.3125]


def test_carlini_wagner_ends_a_descent_that_brings_nothing_for_each_sample() -> None:
    """The loss is looked at ten times in a descent; whose has not fallen leaves, the others go on."""
    network, x, labels = cases(12, 2, low=0.4)
    seen, attack = Seen(network), CarliniWagner(1, 200, 0.003, 1.0)
    attack(seen, x, labels, math.inf, random())
    sizes = [len(points) for points in seen.points[1:-1]]
    assert sizes[0] == 12 and sorted(sizes, reverse=True) == sizes
    assert len(set(sizes)) > 1 and len(sizes) < 200
    changes = [step for step in range(1, len(sizes)) if sizes[step] != sizes[step - 1]]
    assert all((step - 1) % 20 == 0 for step in changes)


def test_carlini_wagner_can_ask_for_more_than_a_tie() -> None:
    network, x, labels = cases(6, 3, low=0.4)
    found = CarliniWagner(6, 100, weight=0.1, confidence=0.5)(network, x, labels, math.inf, random())
    assert found.success.all() and float(found.margins.min()) >= 0.5


@pytest.mark.parametrize("attack", [DeepFool(), CarliniWagner(6, 60, 0.03, 0.1)])
def test_wrong_answers_beyond_eps_do_not_count(attack: Attack) -> None:
    network, x, labels = cases(20, 3, low=0.4)
    free = attack(network, x, labels, math.inf, random())
    eps = float(free.distances.median())
    found = attack(network, x, labels, eps, random())
    assert torch.equal(found.success, free.distances <= eps)
    assert torch.equal(found.images[~found.success], x[~found.success])


# ---------------------------------------------------------------- a trained network


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Part]:
    """A small network for the digits, 80 of which are attacked."""
    data, network = load_digits(0), digits_cnn(0, (4, 6), 16)
    group = Group(list(network.parameters()), 0.1, 5e-4)
    train(network, data.train.first(640), Standard(), [group], Run(6, 32, choose=False), lambda n: 0.0)
    return network, data.test.first(80)


def successes(trained: tuple[Network, Part], attack: Attack, eps: float) -> int:
    network, part = trained
    assert isinstance(network, nn.Module)
    return int(attack(network, part.images, part.labels, eps, random()).success.sum())


def test_more_effort_finds_more_on_a_trained_network(trained: tuple[nn.Module, Part]) -> None:
    eps = 0.06
    fgsm, r_fgsm, pgd = (successes(trained, attack, eps) for attack in (FGSM, R_FGSM, Pgd(20, 1)))
    more = successes(trained, Pgd(20, 3), eps)
    clean = successes(trained, FGSM, 0.0)
    assert clean < r_fgsm <= fgsm <= pgd <= more and clean + 8 < pgd < 80
    assert successes(trained, Pgd(20, 1, Targeted()), eps) >= pgd


@pytest.mark.parametrize(("ball", "eps"), [(LINF, 0.06), (L2, 0.35)], ids=["linf", "l2"])
@pytest.mark.parametrize("loss", [margin, cross_entropy])
def test_apgd_is_at_least_as_strong_as_pgd_with_as_many_gradients(trained, loss, ball: Ball, eps: float) -> None:
    pgd, apgd = (successes(trained, kind(20, 1, loss, ball), eps) for kind in (Pgd, Apgd))
    assert apgd >= pgd - 1


@both_balls
def test_a_later_start_never_replaces_a_better_try(trained: tuple[nn.Module, Part], ball: Ball) -> None:
    network, part = trained
    eps = 0.06 if ball is LINF else 0.35
    one, many = (Pgd(3, n, ball=ball)(network, part.images, part.labels, eps, random()) for n in (1, 4))
    assert bool((many.success | ~one.success).all())
    lost = ~many.success
    assert bool((many.margins >= one.margins - 1e-4)[lost].all()) and bool((many.margins > one.margins)[lost].any())


def test_distances_of_the_two_minimal_attacks_agree_roughly(trained: tuple[nn.Module, Part]) -> None:
    network, part = trained
    deepfool = r_2(network, part.first(30))
    carlini = r_2(network, part.first(30), CarliniWagner(5, 80, 0.1, 0.1))
    assert deepfool.right == carlini.right and min(deepfool.found, carlini.found) >= deepfool.right - 2
    assert carlini.mean == pytest.approx(deepfool.mean, rel=0.3)


# ---------------------------------------------------------------- measures


def part_of(x: Tensor, labels: Tensor) -> Part:
    return Part(x.float(), labels, torch.arange(len(x)))


def test_robustness_of_a_linear_network_in_closed_form() -> None:
    network, x, labels = cases(40, 2, low=0.4)
    labels[:10] = 1 - labels[:10]
    network, part, eps = network.float(), part_of(x, labels), 0.05
    size = (network[1].weight[0] - network[1].weight[1]).detach()
    margins = -margin(network(part.images), part.labels).detach()
    assert r_inf(network, part, eps) == pytest.approx(float((margins > eps * size.abs().sum()).float().mean()))
    assert clean_accuracy(network, part) == 0.75 == r_inf(network, part, 0.0)
    found = r_2(network, part)
    assert (found.images, found.right, found.found) == (40, 30, 30)
    assert found.mean == pytest.approx(1.02 * float((margins[10:] / size.norm()).mean()), rel=1e-4)
    assert found.expected == pytest.approx(0.75 * found.mean)


class Cliff(nn.Module):
    """Class 1 from 0.5 on, where nothing changes any more: images of class 0 can be moved, those of class 1 cannot."""

    def forward(self, x: Tensor) -> Tensor:
        rise = torch.where(x < 0.5, x - 0.5, 5 + 0 * x)
        return torch.cat([torch.zeros_like(rise), rise], 1)


def test_images_that_no_attack_moves_over_are_counted_and_not_averaged() -> None:
    part = Part(torch.tensor([[0.4], [0.3], [0.9], [0.8]]), torch.tensor([0, 0, 1, 0]), torch.arange(4))
    found = r_2(Cliff(), part)
    assert (found.images, found.right, found.found) == (4, 3, 2)
    assert found.mean == pytest.approx(1.02 * 0.15) and found.expected == pytest.approx(0.75 * found.mean)


def test_all_four_values_of_a_part() -> None:
    network, x, labels = cases(6, 3, low=0.4)
    found = robustness(network.float(), part_of(x, labels), 0.01, carlini_wagner=CarliniWagner(8, 150, 0.003))
    assert 0 < found.fgsm <= found.r_fgsm <= 1
    assert found.carlini_wagner.mean == pytest.approx(found.deepfool.mean / 1.02, rel=0.02)


def test_distances_need_the_right_attack_and_something_to_measure() -> None:
    network, x, labels = cases(4, 2)
    network, part = network.float(), part_of(x, labels)
    with pytest.raises(UsageError, match="Pgd does not look for the nearest wrong answer; DeepFool does"):
        r_2(network, part, Pgd())
    with pytest.raises(DataError, match="at least one image"):
        r_2(network, part.first(0))
    with pytest.raises(DataError, match="at least one image"):
        r_inf(network, part.first(0), 0.1)
    wrong = Part(part.images, 1 - part.labels, part.indices)
    assert not right(network, wrong.images, wrong.labels).any()
    none = r_2(network, wrong)
    assert (none.right, none.found, none.expected) == (0, 0, 0.0) and math.isnan(none.mean)
