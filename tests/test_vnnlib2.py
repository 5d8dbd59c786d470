"""VNN-LIB 2.0: the same properties as the same formulas in 1.0; what is refused, and where messages point."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest
import torch

from surebound.errors import SpecError, UnsupportedSpec, UsageError
from surebound.properties import Property
from surebound.vnnlib import load_vnnlib, parse_vnnlib

pytest.importorskip("vnnlib", reason="the package vnnlib is not installed")

DECLARED = """(vnnlib-version <2.0>)
; inputs first
(declare-network N
  (declare-input X real [1,3])
  (declare-output Y real [2,2])
)
"""
BOX = "".join(f"(assert (and (>= X[0,{i}] -1.5) (<= X[0,{i}] 2.0)))\n" for i in range(3))


def as_one(text: str) -> str:
    """The same in VNN-LIB 1.0, line by line."""
    text = text.split("\n)\n", 1)[1]
    text = re.sub(r"X\[0,(\d)\]", r"X_\1", text)
    text = re.sub(r"Y\[(\d),(\d)\]", lambda found: f"Y_{2 * int(found[1]) + int(found[2])}", text).replace("==", "=")
    names = [f"X_{i}" for i in range(3)] + [f"Y_{i}" for i in range(4)]
    return "".join(f"(declare-const {name} Real)\n" for name in names) + text


def random_term(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.3:
        return f"Y[{rng.randint(0, 1)},{rng.randint(0, 1)}]"
    inner = [random_term(rng, depth - 1) for _ in range(rng.randint(2, 3))]
    number = f"{rng.choice(['', '-'])}{rng.randint(0, 9)}.{rng.randint(0, 99)}"
    forms = [f"(+ {' '.join(inner)} {number})", f"(- {' '.join(inner)})", f"(* {number} {inner[0]})", f"(- {inner[0]})"]
    return rng.choice(forms)


def random_formula(rng: random.Random, depth: int) -> str:
    if depth and rng.random() < 0.6:
        parts = " ".join(random_formula(rng, depth - 1) for _ in range(rng.randint(1, 3)))
        return f"({rng.choice(['and', 'or'])} {parts})"
    if rng.random() < 0.2:
        return f"({rng.choice(['<=', '>='])} X[0,{rng.randint(0, 2)}] {rng.choice(['0.25', '-1.0', '1.9'])})"
    return f"({rng.choice(['<=', '>=', '=='])} {random_term(rng, 2)} {rng.randint(0, 9)}.{rng.randint(0, 9)})"


def described(prop: Property) -> list:
    """All that a property says; rows of a conjunction in any order, as those of one line have one place in 2.0."""
    return [
        (
            case.region.lower.tolist(),
            case.region.upper.tolist(),
            case.limits,
            [sorted(zip(d.C.tolist(), d.thresholds, d.t.tolist(), d.text, strict=True)) for d in case.disjuncts],
        )
        for case in prop.cases
    ]


@pytest.mark.parametrize("seed", range(60))
def test_a_query_means_what_it_means_in_version_1(seed: int) -> None:
    rng = random.Random(seed)
    body = "".join(f"(assert {random_formula(rng, 3)})\n" for _ in range(2)) + "(assert (<= Y[0,1] 3.0))\n"
    text = DECLARED + BOX + body
    try:
        wanted = described(parse_vnnlib(as_one(text)))
    except SpecError as error:
        with pytest.raises(
            SpecError, match=re.escape(re.sub(r"X_(\d)", r"X[0,\1]", str(error).split(": ", 1)[1])[:20])
        ):
            parse_vnnlib(text)
    else:
        assert described(parse_vnnlib(text)) == wanted


def test_files_and_shapes(tmp_path: Path) -> None:
    (tmp_path / "a.vnnlib").write_text(DECLARED + BOX + "(assert (<= Y[1,0] Y[0,1]))")
    prop = load_vnnlib(tmp_path / "a.vnnlib", (1, 3))
    (case,) = prop.cases
    assert case.region.lower.tolist() == [[[-1.5, -1.5, -1.5]]]
    assert case.disjuncts[0].C.tolist() == [[0.0, -1.0, 1.0, 0.0]]
    assert case.disjuncts[0].text == ("Y_2 - Y_1",)


def test_values_without_axes() -> None:
    text = "(vnnlib-version <2.0>)\n(declare-network N (declare-input X real []) (declare-output Y real []))\n"
    (case,) = parse_vnnlib(text + "(assert (and (<= X 1.0) (>= X 0.5)))(assert (<= Y 2.0))").cases
    assert (case.region.lower.item(), case.region.upper.item()) == (0.5, 1.0)


REFUSED = [
    (DECLARED.replace("X real", "X float32") + BOX, r"^f:4:18: X is not declared as real: verdicts are about real"),
    (DECLARED.replace("Y real", "Y float64") + BOX, r"^f:5:19: Y is not declared as real"),
    (
        DECLARED.replace("  (declare-output", '  (declare-hidden H real [2] "h")\n  (declare-output') + BOX,
        r"^f:5:19: constraints on hidden values are not supported",
    ),
    (
        DECLARED.replace("  (declare-output", "  (declare-input Z real [2])\n  (declare-output") + BOX,
        r"^f:5:18: queries about one input are supported, this has X, Z",
    ),
    (
        DECLARED + DECLARED.split("\n", 2)[2].replace(" N", " M").replace(" X", " V").replace(" Y", " W") + BOX,
        r"^f:7:18: queries about one network are supported, this has N, M",
    ),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=range(len(REFUSED)))
def test_other_kinds_of_query_are_unsupported(text: str, message: str) -> None:
    with pytest.raises(UnsupportedSpec, match=message) as caught:
        parse_vnnlib(text, "f")
    assert (caught.value.verdict, caught.value.exit_code) == ("unsupported", 3)


ERRORS = [
    ("(assert (< Y[0,0] 1.0))", r"^f:10:1: strict '<' is not supported"),
    ("(assert (!= Y[0,0] 1.0))", r"^f:10:1: unknown operator '!='"),
    ("(assert (<= (* Y[0,0] Y[0,1]) 1.0))", r"^f:10:1: a product of variables is not linear"),
    ("(assert (<= (+ X[0,0] Y[0,1]) 1.0))", r"^f:10:1: a constraint over inputs and outputs together"),
    ("(assert (<= Y[0,2] 1.0))", r"^f:10: Index out of bounds.*Y\[0,2\]"),
    ("(assert (<= Z[0] 1.0))", r"^f:10: .*Z"),
    ("(assert (<= Y[0,0] 1e-3))", r"^f:10:20: no VNN-LIB 2.0: syntax error"),
    ("(assert (<= Y[0,0] 1.0)", r"^f:10:1: this '\(' is never closed"),
    ("(assert (>= X[0,1] 2.5))(assert (<= Y[0,0] 1.0))", r"^f:10:1: the region is empty: X\[0,1\] >= 2.5 \(line 10\)"),
    ("(assert " + "(and " * 200, r"^f:10:\d+: parentheses are nested deeper than 100"),
]


@pytest.mark.parametrize(("body", "message"), ERRORS, ids=range(len(ERRORS)))
def test_errors_say_where_and_what(body: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_vnnlib(DECLARED + BOX + body, "f")


def test_a_missing_limit_has_the_name_that_the_query_uses() -> None:
    box = BOX.replace("(>= X[0,2] -1.5)", "")
    with pytest.raises(SpecError, match=r"^f:4:18: X\[0,2\] has no lower limit; add \(>= X\[0,2\] NUMBER\)"):
        parse_vnnlib(DECLARED + box + "(assert (<= Y[0,0] 1.0))", "f")


def test_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vnnlib", None)
    with pytest.raises(UsageError, match=r"^f: VNN-LIB 2.0 is read with the package vnnlib; pip install 'surebound\[v"):
        parse_vnnlib(DECLARED + BOX, "f")


@pytest.mark.parametrize("seed", range(150))
def test_damaged_queries_are_errors_or_properties(seed: int) -> None:
    """Characters lost, doubled, swapped: a property or a typed error, nothing else."""
    rng = random.Random(seed)
    text = list(DECLARED + BOX + "(assert (or (<= Y[0,1] Y[1,0]) (and (<= Y[0,0] 1.0) (>= Y[1,1] -2.5))))\n")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text))
        change = rng.choice(["lose", "double", "swap", "other"])
        if change == "lose":
            del text[at]
        elif change == "double":
            text.insert(at, text[at])
        elif change == "swap":
            other = rng.randrange(len(text))
            text[at], text[other] = text[other], text[at]
        else:
            text[at] = rng.choice('()[]<>=XYZ0189.,-+*/ \n;"\x00é')
    try:
        prop = parse_vnnlib("".join(text), "f")
    except (SpecError, UsageError) as error:
        assert str(error)
    else:
        assert all(torch.isfinite(case.region.lower).all() for case in prop.cases)
