"""All attacks on images by name, each with its customary budget; change one with `dataclasses.replace`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from surebound.attacks.adversarial import cross_entropy
from surebound.attacks.apgd import Apgd
from surebound.attacks.attack import Attack
from surebound.attacks.balls import L2
from surebound.attacks.carlini_wagner import CarliniWagner
from surebound.attacks.deepfool import DeepFool
from surebound.attacks.image_pgd import Pgd
from surebound.attacks.losses import Targeted, dlr, targeted_dlr
from surebound.attacks.single_step import FAST_FGSM, FGSM, N_FGSM, R_FGSM

ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "fgsm": FGSM,
        "r-fgsm": R_FGSM,
        "fast-fgsm": FAST_FGSM,
        "n-fgsm": N_FGSM,
        "pgd": Pgd(),
        "pgd-l2": Pgd(ball=L2),
        "pgd-targeted": Pgd(loss=Targeted(), restarts=1),
        "apgd-ce": Apgd(loss=cross_entropy),
        "apgd-dlr": Apgd(loss=dlr),
        "apgd-targeted": Apgd(loss=Targeted(targeted_dlr)),
        "apgd-l2": Apgd(ball=L2),
        "deepfool": DeepFool(),
        "carlini-wagner": CarliniWagner(),
    }
)
