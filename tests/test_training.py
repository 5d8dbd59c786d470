"""Data, attacks, objectives, schedules, the loop and the accuracies."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surebound.attacks.adversarial import cross_entropy, evaluating, fgsm, margin, random_start
from surebound.attacks.image_pgd import Pgd
from surebound.data.dataset import Part, stratified_split
from surebound.data.digits import load_digits
from surebound.errors import DataError, UsageError
from surebound.measures.accuracy import attacked, clean_accuracy, fgsm_accuracy, pgd_accuracy, right
from surebound.nets.small import digits_cnn
from surebound.training.loop import Epoch, Group, Run, train
from surebound.training.objectives.adversarial import Fgsm, grad_align
from surebound.training.objectives.standard import Standard
from surebound.training.scene import Scene
from surebound.training.schedules import constant, cosine, multistep
from surebound.training.trainee import Trainee


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_clouds(count: int, seed: int = 0) -> Part:
    """Images of two pixels: class 0 is dark on the left, class 1 on the right."""
    pixels = torch.rand(count, 1, 1, 2, generator=generator(seed)) * 0.4
    labels = torch.arange(count) % 2
    pixels[torch.arange(count), 0, 0, labels] += 0.6
    return Part(pixels, labels, torch.arange(count))


def linear_network() -> nn.Sequential:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    network[1].weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    network[1].bias.data = torch.zeros(2)
    return network


# ---------------------------------------------------------------- data


def test_digits_are_split_by_class_without_overlap() -> None:
    data = load_digits(0)
    assert data.classes == 10 and data.train.images.shape[1:] == (1, 8, 8)
    assert (len(data.train), len(data.validation), len(data.test)) == (1259, 179, 359)
    indices = torch.cat([data.train.indices, data.validation.indices, data.test.indices])
    assert sorted(indices.tolist()) == list(range(1797))
    for part in (data.validation, data.test):
        counts = part.labels.bincount()
        assert int(counts.max() - counts.min()) <= 2
    assert float(data.train.images.min()) == 0 and float(data.train.images.max()) == 1


def test_the_split_is_fixed_by_its_seed_zero_included() -> None:
    first, again, other = load_digits(0), load_digits(0), load_digits(1)
    assert torch.equal(first.test.indices, again.test.indices)
    assert not torch.equal(first.test.indices, other.test.indices)


def test_missing_scikit_learn_is_a_data_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        load_digits()


def test_parts_and_shares_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DataError, match=r"values in \[0, 1\]"):
        Part(torch.full((1, 1, 2, 2), 255.0), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with pytest.raises(DataError, match="equally many"):
        Part(torch.zeros(2, 1, 1, 1), torch.zeros(1, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    with pytest.raises(DataError, match="sum to 1"):
        stratified_split(torch.arange(10), (0.5, 0.4), 0)


# ---------------------------------------------------------------- attacks


def test_margin_is_the_best_other_logit_minus_the_own() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 5.0]])
    assert margin(logits, torch.tensor([0, 1])).tolist() == [-0.5, 1.0]


def test_fgsm_on_a_linear_network_moves_each_pixel_by_eps_against_the_label_and_stays_in_range() -> None:
    x = torch.tensor([[[[0.95, 0.5]]], [[[0.02, 0.5]]]])
    moved = fgsm(linear_network(), x, torch.tensor([1, 0]), 0.1, 0.1, x)
    assert torch.allclose(moved.flatten(1), torch.tensor([[1.0, 0.4], [0.0, 0.6]]))


def test_attacks_stay_within_eps_and_range_even_with_larger_steps() -> None:
    network, x = digits_cnn(0, (2, 3), 5), torch.rand(20, 1, 8, 8, generator=generator())
    labels = torch.arange(20) % 10
    for moved in (
        fgsm(network, x, labels, 0.1, 0.125, random_start(x, 0.1, generator())),
        Pgd(5, 2, step=0.9)(network, x, labels, 0.1, generator()).images,
        Pgd(5, 2, loss=cross_entropy)(network, x, labels, 0.1, generator()).images,
    ):
        assert float((moved - x).abs().max()) <= 0.1 + 1e-6
        assert float(moved.min()) >= 0 and float(moved.max()) <= 1
        assert not moved.requires_grad


def test_pgd_finds_exactly_the_images_that_a_linear_network_can_lose() -> None:
    data = two_clouds(60)
    distance = (data.images[:, 0, 0, 0] - data.images[:, 0, 0, 1]).abs() / 2
    eps = 0.25
    found = attacked(linear_network(), data, eps, Pgd(steps=10, restarts=1))
    assert torch.equal(found, distance > eps)
    assert 0.1 < float(found.double().mean()) < 0.9


def test_an_attack_of_radius_zero_is_the_clean_accuracy_and_more_restarts_never_help_the_network() -> None:
    network, data = digits_cnn(3, (2, 3), 5), load_digits(0).test.first(60)
    assert pgd_accuracy(network, data, 0.0) == clean_accuracy(network, data) == fgsm_accuracy(network, data, 0.0)
    one, three = (attacked(network, data, 0.05, Pgd(5, restarts)) for restarts in (1, 3))
    assert not bool((three & ~one).any())


def test_bad_radii_are_refused() -> None:
    with pytest.raises(UsageError, match="eps must be a finite number >= 0.*-0.1"):
        pgd_accuracy(linear_network(), two_clouds(4), -0.1)


def test_ties_and_nan_count_as_wrong() -> None:
    network = nn.Flatten()
    images = torch.tensor([[0.5, 0.5], [0.6, 0.5], [float("nan"), 0.1]]).reshape(3, 1, 1, 2)
    assert right(network, images, torch.tensor([0, 0, 0])).tolist() == [False, True, False]


def test_measuring_leaves_the_mode_and_the_weights_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Linear(2, 2))
    network[2].eval()
    before = [value.clone() for value in network.state_dict().values()]
    pgd_accuracy(network, two_clouds(8), 0.1)
    assert [part.training for part in network] == [True, True, False]
    assert all(torch.equal(a, b) for a, b in zip(before, network.state_dict().values(), strict=True))
    assert all(parameter.grad is None for parameter in network.parameters())


# ---------------------------------------------------------------- objectives


def scene_of(network: nn.Module, x: Tensor, labels: Tensor, eps: float, seed: int = 0) -> Scene:
    return Scene(Trainee(network, x), x, labels, eps, eps, generator(seed))


class Recorder(nn.Module):
    """A network that notes the mode it runs in and what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = digits_cnn(0, (2, 3), 5)
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, x.detach().clone()))
        return self.inner(x)


def test_the_attack_runs_in_evaluation_mode_and_the_loss_in_training_mode() -> None:
    network, x = Recorder(), torch.rand(4, 1, 8, 8, generator=generator())
    network.train()
    labels = torch.tensor([1, 2, 3, 4])
    loss = Fgsm()(scene_of(network, x, labels, 0.1))
    (attack_mode, start), (loss_mode, moved) = network.seen
    assert (attack_mode, loss_mode, network.training) == (False, True, True)
    assert float((start - x).abs().max()) <= 0.1 + 1e-6 and not torch.equal(start, x)
    with evaluating(network):
        expected = fgsm(network, x, labels, 0.1, 0.125, start)
    assert torch.allclose(moved, expected)
    assert float(loss.detach()) == pytest.approx(float(F.cross_entropy(network(moved), labels).detach()))


def test_radius_zero_is_plain_training() -> None:
    network, x = digits_cnn(0, (2, 3), 5), torch.rand(4, 1, 8, 8, generator=generator())
    labels = torch.tensor([1, 2, 3, 4])
    assert torch.equal(Fgsm()(scene_of(network, x, labels, 0.0)), F.cross_entropy(network(x), labels))


def test_grad_align_is_one_minus_the_mean_cosine_with_the_first_gradient_held_fixed() -> None:
    network, x = digits_cnn(1, (2, 3), 5), torch.rand(6, 1, 8, 8, generator=generator())
    labels, eps = torch.arange(6), 0.2
    eta = (2 * torch.rand(x.shape, generator=generator(4)) - 1) * eps

    def gradient(point: Tensor, create: bool) -> Tensor:
        leaf = point.detach().requires_grad_(True)
        loss = F.cross_entropy(network(leaf), labels, reduction="sum")
        return torch.autograd.grad(loss, leaf, create_graph=create)[0].flatten(1)

    one, two = gradient(x, False), gradient(x + eta, True)
    expected = 1 - ((one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))).mean()
    found = grad_align(scene_of(network, x, labels, eps, 4))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    weights = list(network.parameters())
    pairs = zip(
        torch.autograd.grad(found, weights, allow_unused=True),
        torch.autograd.grad(expected, weights, allow_unused=True),
        strict=True,
    )
    for a, b in pairs:
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e-12, 1e-24])
def test_grad_align_does_not_depend_on_how_large_gradients_are(scale: float) -> None:
    network, x = digits_cnn(1, (2, 3), 5).double(), torch.rand(6, 1, 8, 8, dtype=torch.float64, generator=generator())
    small = digits_cnn(1, (2, 3), 5)
    for net in (network, small):
        with torch.no_grad():
            net[-1].weight.mul_(scale)
            net[-1].bias.zero_()
    labels = torch.arange(6)

    def gradient(point: Tensor) -> Tensor:
        leaf = point.detach().requires_grad_(True)
        return torch.autograd.grad(F.cross_entropy(network(leaf), labels, reduction="sum"), leaf)[0].flatten(1)

    noise = torch.rand(x.shape, generator=generator(4)).double()
    one, two = gradient(x), gradient(x.float().double() + (2 * noise - 1) * 0.2)
    expected = 1 - ((one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))).mean()
    found = grad_align(scene_of(small, x.float(), labels, 0.2, 4))
    assert float(found.detach()) == pytest.approx(float(expected), abs=1e-4)


def test_grad_align_vanishes_for_linear_logits_difference_and_for_zero_gradients() -> None:
    network, x = linear_network(), two_clouds(8).images
    labels = two_clouds(8).labels
    assert float(grad_align(scene_of(network, x, labels, 0.1)).detach()) == pytest.approx(0, abs=1e-6)
    network[1].weight.data.zero_()
    assert float(grad_align(scene_of(network, x, labels, 0.1))) == 0


# ---------------------------------------------------------------- schedules


def test_schedules() -> None:
    assert [cosine(t) for t in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    steps = multistep((0.5, 0.75))
    assert [steps(t) for t in (0, 0.49, 0.5, 0.75, 1)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    assert constant(0.7) == 1
    with pytest.raises(UsageError, match="ascend"):
        multistep((0.7, 0.3))


# ---------------------------------------------------------------- the loop


def fitted(seed: int, epochs: int = 8) -> tuple[nn.Module, tuple[Epoch, ...]]:
    network, data = digits_cnn(seed, (4, 6), 16), load_digits(0).train.first(256)
    objective = Fgsm(align=0.2)
    group = Group(list(network.parameters()), 0.1, 5e-4)
    run = Run(epochs, 16, seed=seed, eps=0.02)
    return network, train(network, data, objective, [group], run, lambda n: clean_accuracy(n, data))


def test_training_learns_and_repeats_itself_bit_by_bit_under_each_seed() -> None:
    (first, epochs), (again, _), (other, _) = fitted(0), fitted(0), fitted(1)
    assert epochs[-1].loss < 0.8 * epochs[0].loss and max(e.score for e in epochs) > 0.5
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert not first.training


def test_dropout_is_drawn_from_the_seed_and_leaves_the_global_random_state_alone() -> None:
    found: list[Tensor] = []
    for seed in (0, 0, 1):
        network = nn.Sequential(nn.Dropout(0.5), linear_network())
        run, state = Run(2, 4, seed=seed, schedule=constant), torch.get_rng_state()
        train(network, two_clouds(8), Standard(), [Group(list(network.parameters()), 0.5)], run, lambda n: 0.0)
        assert torch.equal(state, torch.get_rng_state())
        found.append(network[1][1].weight.detach())
        torch.rand(1)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_step_of_one_image_joins_another_or_is_refused_where_batch_norm_needs_several() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Linear(2, 2))
    groups = [Group(list(network.parameters()), 0.1)]
    for count, batch in ((1, 4), (3, 1)):
        with pytest.raises(UsageError, match="a step of 1 images leaves a single one for a process"):
            train(network, two_clouds(count), Standard(), groups, Run(1, batch), lambda n: 0.0)
    assert len(train(network, two_clouds(9), Standard(), groups, Run(1, 4), lambda n: 0.0)) == 1


def test_training_does_not_touch_the_global_random_state() -> None:
    state = torch.get_rng_state()
    fitted(0, 1)
    assert torch.equal(state, torch.get_rng_state())


def test_the_best_epoch_by_score_is_kept_and_the_first_of_equals_wins() -> None:
    network, data = linear_network(), two_clouds(16)
    states: list[Tensor] = []

    def score(candidate: nn.Module) -> float:
        assert not candidate.training
        states.append(candidate.state_dict()["1.weight"].clone())
        return (0.1, 0.9, 0.9, 0.2)[len(states) - 1]

    told: list[Epoch] = []
    run = Run(4, 8, schedule=constant)
    group = Group(list(network.parameters()), 0.5)
    epochs = train(network, data, Standard(), [group], run, score, told.append)
    assert torch.equal(network.state_dict()["1.weight"], states[1])
    assert not torch.equal(states[1], states[2])
    assert tuple(told) == epochs and [epoch.score for epoch in epochs] == [0.1, 0.9, 0.9, 0.2]


def test_each_group_has_its_own_rate_and_decay_and_the_schedule_scales_both() -> None:
    network, data = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), two_clouds(4)
    network[1].weight.data.fill_(1.0)
    network[1].bias.data.fill_(1.0)

    def no_loss(scene: Scene) -> Tensor:
        return 0.0 * scene.clean.sum()

    groups = [Group([network[1].weight], 0.5, 0.2), Group([network[1].bias], 0.5, 0.0)]
    run = Run(2, 4, momentum=0.0, schedule=lambda t: 1.0 if t < 0.5 else 0.1)
    train(network, data, no_loss, groups, run, lambda n: -float(n[1].weight.detach().mean()))
    assert network[1].bias.tolist() == [1.0, 1.0]
    assert network[1].weight.tolist() == [[pytest.approx(0.9 * 0.99)] * 2] * 2


def test_a_loss_that_is_not_finite_and_empty_parts_end_training_with_a_reason() -> None:
    def broken(scene: Scene) -> Tensor:
        return scene.clean.sum() * float("nan")

    network, data = linear_network(), two_clouds(4)
    groups = [Group(list(network.parameters()), 0.1)]
    with pytest.raises(UsageError, match="training loss is nan in epoch 0"):
        train(network, data, broken, groups, Run(1), lambda n: 0.0)
    with pytest.raises(DataError, match="no training images"):
        train(network, data.first(0), broken, groups, Run(1), lambda n: 0.0)
    with pytest.raises(DataError, match="at least one image"):
        clean_accuracy(network, data.first(0))
