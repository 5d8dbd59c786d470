"""Attacks against another implementation of them: pip install 'surebound[attacks-ref]'."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from surebound.attacks.table import ATTACKS
from surebound.data.digits import load_digits
from surebound.nets.small import digits_cnn
from surebound.training.loop import Group, Run, train
from surebound.training.objectives import OBJECTIVES

foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed; pip install 'surebound[attacks-ref]'")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
EPS = 0.1


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A network that knows the digits, and 60 of them that it gets right."""
    data, network = load_digits(0), digits_cnn(0)
    group = Group(list(network.parameters()), 0.05)
    train(network, data.train, OBJECTIVES["standard"](), [group], Run(6, 64), lambda n: 0.0)
    images, labels = data.test.images, data.test.labels
    known = (network(images).argmax(1) == labels).nonzero().squeeze(1)[:60]
    return network, images[known], labels[known]


def theirs(attack: object, trained: tuple[nn.Module, Tensor, Tensor], eps: float | None) -> tuple[Tensor, Tensor]:
    """Images and successes of foolbox."""
    network, images, labels = trained
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    _, found, success = attack(model, images, labels, epsilons=eps)  # type: ignore[operator]
    return found, success


def ours(name: str, trained: tuple[nn.Module, Tensor, Tensor], eps: float, **changes: object) -> object:
    """What our attack found."""
    attack = replace(ATTACKS[name], **changes)  # type: ignore[type-var]
    return attack(*trained, eps, torch.Generator().manual_seed(0))


def test_fgsm_is_theirs(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    found, success = theirs(foolbox.attacks.LinfFastGradientAttack(random_start=False), trained, EPS)
    mine = ours("fgsm", trained, EPS)
    assert torch.allclose(mine.images, found, atol=1e-6) and torch.equal(mine.success, success)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "attack"), [("pgd", "LinfPGD"), ("pgd-l2", "L2PGD")])
def test_pgd_finds_no_less(name: str, attack: str, trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    eps = EPS if name == "pgd" else 1.0
    _, success = theirs(getattr(foolbox.attacks, attack)(steps=40, rel_stepsize=0.1), trained, eps)
    mine = ours(name, trained, eps, steps=40)
    assert 0 < int(success.sum()) <= int(mine.success.sum()) + 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "attack", "changes", "much"),
    [
        ("deepfool", "L2DeepFoolAttack", {}, 0.05),
        ("carlini-wagner", "L2CarliniWagnerAttack", {"steps": 300}, 0.05),
    ],
)
def test_the_nearest_wrong_answers_are_as_near(
    name: str, attack: str, changes: dict[str, object], much: float, trained: tuple[nn.Module, Tensor, Tensor]
) -> None:
    settings = {"steps": 300, "initial_const": 1e-3} if name == "carlini-wagner" else {"steps": 50}
    found, success = theirs(getattr(foolbox.attacks, attack)(**settings), trained, None)
    mine = ours(name, trained, math.inf, **changes)
    both = success & mine.success  # type: ignore[attr-defined]
    assert int(both.sum()) >= 0.9 * len(both)
    distances = (found - trained[1]).flatten(1).norm(dim=1)[both]
    assert float(mine.distances[both].median()) <= (1 + much) * float(distances.median())  # type: ignore[attr-defined]
