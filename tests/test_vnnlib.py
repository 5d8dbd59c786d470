"""The VNN-LIB parser: meaning, exactness, messages."""

from __future__ import annotations

import csv
import gzip
import math
import os
import random
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from surebound.errors import SpecError
from surebound.properties import Case, Disjunct, Property, check_fits, robust
from surebound.regions import Box, LpBall
from surebound.vnnlib import load_vnnlib, parse_vnnlib

BENCH = os.environ.get("SUREBOUND_BENCH")
FAMILIES = sorted(path.parent.name for path in Path(BENCH).glob("*/instances.csv")) if BENCH else []
needs_bench = pytest.mark.skipif(not BENCH, reason="SUREBOUND_BENCH is not set to a folder of benchmark instances")


def declare(inputs: int, outputs: int) -> str:
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{i}" for i in range(outputs)]
    return "".join(f"(declare-const {name} Real)\n" for name in names)


def unit(inputs: int) -> str:
    return "".join(f"(assert (>= X_{i} 0))\n(assert (<= X_{i} 1))\n" for i in range(inputs))


ONE = declare(1, 2) + unit(1)


# --- an independent reading of the same text -------------------------------------------------------------------


def nested(text: str) -> list:
    """S-expressions as nested lists."""
    tokens = re.sub(r";.*", "", text).replace("(", " ( ").replace(")", " ) ").split()

    def read(position: int) -> tuple[list, int]:
        items: list = []
        while position < len(tokens) and tokens[position] != ")":
            if tokens[position] == "(":
                inner, position = read(position + 1)
                items.append(inner)
            else:
                items.append(tokens[position])
            position += 1
        return items, position

    return read(0)[0]


def value(term: list | str, point: Mapping[str, Fraction]) -> Fraction:
    if isinstance(term, str):
        return point[term] if term in point else Fraction(term)
    head, *rest = term
    numbers = [value(item, point) for item in rest]
    if head == "+":
        return sum(numbers, Fraction(0))
    if head == "-":
        return -numbers[0] if len(numbers) == 1 else numbers[0] - sum(numbers[1:], Fraction(0))
    if head == "*":
        return math.prod(numbers, start=Fraction(1))
    assert head == "/"
    return numbers[0] / math.prod(numbers[1:], start=Fraction(1))


def true(formula: list, point: Mapping[str, Fraction]) -> bool:
    head, *rest = formula
    if head == "and":
        return all(true(item, point) for item in rest)
    if head == "or":
        return any(true(item, point) for item in rest)
    left, right = (value(item, point) for item in rest)
    return {"<=": left <= right, ">=": left >= right, "=": left == right}[head]


def says(text: str, x: list[Fraction], y: list[Fraction]) -> bool:
    point = {f"X_{i}": v for i, v in enumerate(x)} | {f"Y_{i}": v for i, v in enumerate(y)}
    return all(true(command[1], point) for command in nested(text) if command[0] == "assert")


def counterexample(prop: Property, x: list[Fraction], y: list[Fraction]) -> bool:
    return any(within(case, x) and any(below(disjunct, y) for disjunct in case.disjuncts) for case in prop.cases)


def within(case: Case, x: list[Fraction]) -> bool:
    assert case.limits is not None
    return all(Fraction(low) <= v <= Fraction(high) for v, (low, high) in zip(x, case.limits, strict=True))


def below(disjunct: Disjunct, y: list[Fraction]) -> bool:
    return all(
        sum(Fraction(c) * v for c, v in zip(row, y, strict=True)) <= limit
        for row, limit in zip(disjunct.C.tolist(), disjunct.thresholds, strict=True)
    )


# --- meaning ---------------------------------------------------------------------------------------------------


def random_formula(rng: random.Random, depth: int) -> str:
    kind = rng.choice(["and", "or", "x", "y", "y"] if depth else ["x", "y", "y"])
    if kind in ("and", "or"):
        return f"({kind} {' '.join(random_formula(rng, depth - 1) for _ in range(rng.randint(1, 3)))})"
    number = f"{rng.randint(0, 20) / 10}"
    if kind == "x":
        atoms = ["(<= X_0 {0})", "(>= X_0 (- {0}))", "(<= (- {0}) X_1)", "(<= (* 2 X_1) {0})", "(<= (* X_0 (- 4)) {0})"]
        return rng.choice(atoms).format(number)
    atoms = [
        "(<= Y_0 Y_1)",
        "(>= Y_0 (+ Y_1 {0}))",
        "(<= (+ (* 0.1 Y_0) Y_1 (- 1e-1)) (- {0} Y_0))",
        "(= Y_1 {0})",
        "(>= (- Y_0) (/ {0} 3))",
        "(<= -.5 (- Y_0 Y_1 1.))",
    ]
    return rng.choice(atoms).format(number)


@pytest.mark.parametrize("seed", range(60))
def test_parser_agrees_with_naive_reading(seed: int) -> None:
    rng = random.Random(seed)
    bounds = "".join(f"(assert (and (<= X_{i} 2.5)\n (>= X_{i} -25E-1)))\n" for i in range(2))
    body = [f"(assert {random_formula(rng, 3)}) ; comment )(\n" for _ in range(3)] + ["(assert (<= Y_0 3))"]
    rng.shuffle(body)
    text = declare(2, 2) + "".join(body[:2]) + bounds + "".join(body[2:])
    prop = parse_vnnlib(text)
    answers = set()
    for _ in range(200):
        x = [Fraction(rng.randint(-26, 26), 10) for _ in range(2)]
        y = [Fraction(rng.randint(-20, 35), 10) for _ in range(2)]
        expected = says(text, x, y)
        assert counterexample(prop, x, y) == expected
        answers.add(expected)
    assert False in answers


def test_assertion_after_or_is_conjoined() -> None:
    prop = parse_vnnlib(ONE + "(assert (or (<= Y_0 1) (<= Y_1 2)))\n(assert (<= Y_0 Y_1))")
    (case,) = prop.cases
    assert [disjunct.text for disjunct in case.disjuncts] == [("Y_0 - 1", "Y_0 - Y_1"), ("Y_1 - 2", "Y_0 - Y_1")]
    assert not counterexample(prop, [Fraction(0)], [Fraction(1), Fraction(0)])


def test_assertion_before_or_comes_first_in_every_disjunct() -> None:
    prop = parse_vnnlib(ONE + "(assert (<= Y_0 Y_1))(assert (or (<= Y_0 1) (and (<= Y_1 2) (<= Y_1 3))))")
    assert [d.text for d in prop.cases[0].disjuncts] == [
        ("Y_0 - Y_1", "Y_0 - 1"),
        ("Y_0 - Y_1", "Y_1 - 2", "Y_1 - 3"),
    ]


def test_terms_with_the_same_box_form_one_case_in_order_of_appearance() -> None:
    text = (
        ONE
        + """
    (assert (or (and (<= X_0 0.5) (<= Y_0 1)) (and (>= X_0 0.5) (<= Y_0 2))
                (and (<= X_0 0.5) (<= X_0 0.75) (<= Y_0 3)) (<= Y_0 4)))"""
    )
    prop = parse_vnnlib(text)
    assert [case.limits for case in prop.cases] == [
        ((Decimal(0), Decimal("0.5")),),
        ((Decimal("0.5"), Decimal(1)),),
        ((Decimal(0), Decimal(1)),),
    ]
    assert [[d.text for d in case.disjuncts] for case in prop.cases] == [
        [("Y_0 - 1",), ("Y_0 - 3",)],
        [("Y_0 - 2",)],
        [("Y_0 - 4",)],
    ]


@pytest.mark.parametrize(
    ("atom", "row", "threshold", "text"),
    [
        ("(<= Y_1 Y_0)", [-1, 1], 0, "Y_1 - Y_0"),
        ("(>= Y_1 Y_0)", [1, -1], 0, "Y_0 - Y_1"),
        ("(<= Y_0 3.99)", [1, 0], 3.99, "Y_0 - 3.99"),
        ("(>= Y_0 3.99)", [-1, 0], -3.99, "-Y_0 + 3.99"),
        ("(<= (+ (* 2 Y_1) Y_0 1.5) 0)", [1, 2], -1.5, "2 Y_1 + Y_0 + 1.5"),
        ("(<= Y_0 1e-06)", [1, 0], 1e-06, "Y_0 - 0.000001"),
        ("(<= Y_0 (- 3))", [1, 0], -3, "Y_0 + 3"),
        ("(<= (/ Y_0 4) 1)", [0.25, 0], 1, "0.25 Y_0 - 1"),
        ("(<= Y_0 Y_0)", [0, 0], 0, "0"),
    ],
)
def test_rows_and_their_text(atom: str, row: list[float], threshold: float, text: str) -> None:
    (case,) = parse_vnnlib(ONE + f"(assert {atom})").cases
    (disjunct,) = case.disjuncts
    assert disjunct.C.dtype == disjunct.t.dtype == torch.float64
    assert disjunct.C.tolist() == [row]
    assert disjunct.t.item() == pytest.approx(threshold, abs=1e-15)
    assert disjunct.text == (text,)


def test_equation_over_outputs_is_two_rows_and_over_an_input_two_limits() -> None:
    prop = parse_vnnlib(declare(1, 1) + "(assert (= X_0 0.5))(assert (= Y_0 1))")
    assert prop.cases[0].limits == ((Decimal("0.5"), Decimal("0.5")),)
    assert prop.cases[0].disjuncts[0].text == ("Y_0 - 1", "-Y_0 + 1")


def test_shape_of_the_region() -> None:
    text = declare(6, 1) + unit(6) + "(assert (<= Y_0 0))"
    assert parse_vnnlib(text).cases[0].region.shape == (6,)
    assert parse_vnnlib(text, shape=(1, 2, 3)).cases[0].region.shape == (1, 2, 3)
    with pytest.raises(SpecError, match=r"6 inputs, which do not fill the input shape \(7,\)"):
        parse_vnnlib(text, shape=(7,))


# --- exactness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["0.1", "0.3", "-0.1", "-0.3", "1e-06", "0.5", "1e-400", "-1e-400", "1e300", "0.0"])
def test_float_box_contains_the_decimals_and_is_one_step_wide_at_most(number: str) -> None:
    (case,) = parse_vnnlib(declare(1, 1) + f"(assert (= X_0 {number}))(assert (<= Y_0 0))").cases
    lower, upper = case.region.lower.item(), case.region.upper.item()
    exact = Fraction(Decimal(number))
    assert Fraction(lower) <= exact <= Fraction(upper)
    assert upper == lower if Fraction(lower) == exact else upper == math.nextafter(lower, math.inf)
    assert case.limits is not None
    assert case.limits[0] == (Decimal(number), Decimal(number))


def test_tightest_of_several_limits_counts_exactly() -> None:
    text = (
        declare(1, 1)
        + """
    (assert (<= X_0 0.1000000000000000000001)) (assert (<= X_0 0.1)) (assert (<= X_0 7))
    (assert (>= X_0 -1)) (assert (>= X_0 -0.2)) (assert (>= X_0 -0.20000000000000000001)) (assert (<= Y_0 0))"""
    )
    assert parse_vnnlib(text).cases[0].limits == ((Decimal("-0.2"), Decimal("0.1")),)


@pytest.mark.parametrize("number", ["0.1", "0.3", "-0.1", "-0.3", "3.99", "295.09351501464846"])
def test_thresholds_are_rounded_up_and_kept(number: str) -> None:
    (disjunct,) = parse_vnnlib(ONE + f"(assert (<= Y_0 {number}))").cases[0].disjuncts
    exact = Fraction(number)
    assert disjunct.thresholds == (exact,)
    assert Fraction(disjunct.t.item()) > exact > Fraction(math.nextafter(disjunct.t.item(), -math.inf))


def test_exactly_representable_thresholds_need_no_record() -> None:
    (disjunct,) = parse_vnnlib(ONE + "(assert (<= Y_0 0.25))").cases[0].disjuncts
    assert disjunct.exact == ()
    assert disjunct.thresholds == (Fraction(1, 4),)


def test_coefficients_that_float64_cannot_hold_are_cleared_by_a_factor() -> None:
    (disjunct,) = parse_vnnlib(ONE + "(assert (<= (+ (* 0.1 Y_0) (/ Y_1 3)) 0.7))").cases[0].disjuncts
    assert disjunct.C.tolist() == [[3.0, 10.0]]
    assert disjunct.t.tolist() == [21.0]
    assert disjunct.text == ("3 Y_0 + 10 Y_1 - 21",)


def test_coefficients_without_exact_multiple_are_refused() -> None:
    text = ONE + "(assert (<= (+ (* 0.1234567890123456789 Y_0) Y_1) 0))"
    with pytest.raises(SpecError, match=r"^f:6:9: float64 cannot hold the coefficients of this constraint exactly"):
        parse_vnnlib(text, "f")


def test_limit_without_finite_decimal_is_rounded_into_the_region() -> None:
    (case,) = parse_vnnlib(
        declare(1, 1) + "(assert (<= X_0 (/ 2 3)))(assert (>= (* 3 X_0) 1))(assert (<= Y_0 0))"
    ).cases
    assert case.limits is not None
    ((low, high),) = case.limits
    assert Fraction(1, 3) < Fraction(low) < Fraction(1, 3) + Fraction(1, 10**50)
    assert Fraction(2, 3) - Fraction(1, 10**50) < Fraction(high) < Fraction(2, 3)
    assert Fraction(case.region.lower.item()) < Fraction(1, 3)
    assert Fraction(case.region.upper.item()) > Fraction(2, 3)


# --- messages --------------------------------------------------------------------------------------------------

GOOD = "(assert (<= Y_0 0))"

ERRORS = [
    ("", r"^f:1:1: the file declares nothing"),
    ("; only a comment\n", r"^f:2:1: the file declares nothing"),
    (ONE, r"^f:6:1: no output is constrained here, so every input would be a counterexample"),
    (ONE + "(assert (or (<= Y_0 0)\n (<= X_0 0.5)))", r"^f:7:2: no output is constrained here"),
    (ONE + "(assert (<= Y_0 0)", r"^f:6:1: this '\(' is never closed"),
    (ONE + "(assert (<= Y_0 0)))", r"^f:6:20: unexpected '\)'"),
    (ONE + GOOD + " rest", r"^f:6:21: expected '\(' but found 'rest'"),
    (ONE + GOOD + "\n (check-sat)", r"^f:7:2: unknown command 'check-sat'"),
    (ONE + GOOD + "()", r"^f:6:20: unknown command ''"),
    (ONE + "(assert (<= Y_2 0))", r"^f:6:13: Y_2 is used but not declared; add \(declare-const Y_2 Real\)"),
    ("(assert (<= Y_0 0))" + ONE, r"^f:1:13: Y_0 is used but not declared"),
    (ONE + "(assert (<= Y_0 foo))", r"^f:6:17: unknown symbol 'foo'; expected a number, X_i or Y_i"),
    (ONE + "(assert (<= Y_0 1.2.3))", r"^f:6:17: unknown symbol '1.2.3'"),
    (ONE + "(assert (<= Y_0 0x10))", r"^f:6:17: unknown symbol '0x10'"),
    (ONE + "(assert (<= Y_0 nan))", r"^f:6:17: unknown symbol 'nan'"),
    (ONE + "(assert (<= Y_0 1e9999999999))", r"^f:6:17: the number '1e9999999999' is too long or beyond any float"),
    (ONE + "(assert (<= Y_0 1e400))", r"^f:6:9: a threshold is beyond the range of float64"),
    (ONE + "(declare-const X_0 Real)", r"^f:6:16: X_0 is declared twice, first in line 1"),
    (ONE + "(declare-const Z Real)", r"^f:6:16: cannot declare 'Z'; inputs are X_0"),
    (ONE + "(declare-const X_01 Real)", r"^f:6:16: cannot declare 'X_01'"),
    (ONE + "(declare-const Y_2 Int)", r"^f:6:20: Y_2 is declared as 'Int'; only Real is supported"),
    (ONE + "(declare-const Y_2)", r"^f:6:1: a declaration looks like \(declare-const X_0 Real\)"),
    ("(declare-const X_0 Real)\n(declare-const X_2 Real)", r"^f:2:16: X_2 is declared but X_1 is not"),
    ("(declare-const X_0 Real)", r"^f:1:25: no output is declared; add \(declare-const Y_0 Real\)"),
    ("(declare-const Y_0 Real)", r"^f:1:25: no input is declared"),
    (declare(2, 1) + unit(1) + GOOD, r"^f:2:16: X_1 has no lower limit; add \(>= X_1 NUMBER\)"),
    (declare(1, 1) + "(assert (>= X_0 0))" + GOOD, r"^f:1:16: X_0 has no upper limit; add \(<= X_0 NUMBER\)"),
    (
        declare(1, 1) + "(assert (>= X_0 0))(assert (or (and (<= X_0 1) (<= Y_0 0))\n(<= Y_0 1)))",
        r"^f:1:16: X_0 has no upper limit in the conjunction that begins in line 4",
    ),
    (
        declare(1, 1) + "(assert (>= X_0 2.5))\n(assert (<= X_0 1))" + GOOD,
        r"^f:4:9: the region is empty: X_0 >= 2.5 \(line 3\) and X_0 <= 1 \(line 4\) exclude each other; correct one",
    ),
    (
        ONE + "(assert (or (<= Y_0 1)\n(and (>= X_0 2) (<= Y_0 0))))",
        r"^f:7:6: the region is empty: X_0 >= 2 \(line 7\) and X_0 <= 1 \(line 5\)",
    ),
    (declare(1, 1) + "(assert (= X_0 (/ 1 3)))" + GOOD, r"^f:3:9: no decimal number lies between the limits of X_0"),
    (declare(1, 1) + "(assert (= X_0 1e400))" + GOOD, r"^f:3:9: a limit of X_0 is beyond the range of float64"),
    (ONE + "(assert (<= Y_0 X_0))", r"^f:6:9: a constraint over inputs and outputs together is not supported"),
    (
        declare(2, 1) + unit(2) + "(assert (<= X_0 X_1))" + GOOD,
        r"^f:8:9: a linear constraint over several inputs \(X_0, X_1\) is not supported",
    ),
    (ONE + "(assert (<= X_0 X_0))" + GOOD, r"^f:6:9: X_0 cancels out"),
    (ONE + "(assert (<= 1 2))" + GOOD, r"^f:6:9: this compares constants only"),
    (ONE + "(assert (< Y_0 0))", r"^f:6:9: strict '<' is not supported, as its solutions are not closed; use <="),
    (ONE + "(assert (> Y_0 0))", r"^f:6:9: strict '>' is not supported, as its solutions are not closed; use >="),
    (ONE + "(assert (not (<= Y_0 0)))", r"^f:6:9: 'not' is not supported"),
    (ONE + "(assert (=> (<= Y_0 0) (<= Y_1 0)))", r"^f:6:9: '=>' is not supported"),
    (ONE + "(assert (xor (<= Y_0 0)))", r"^f:6:9: unknown operator 'xor'"),
    (ONE + "(assert (or))", r"^f:6:9: \(or\) has no arguments"),
    (ONE + "(assert Y_0)", r"^f:6:9: expected a formula"),
    (ONE + "(assert ((<= Y_0 0)))", r"^f:6:9: expected a formula"),
    (ONE + "(assert)", r"^f:6:1: assert takes one formula, got 0"),
    (ONE + "(assert (<= Y_0 0) (<= Y_1 0))", r"^f:6:1: assert takes one formula, got 2"),
    (ONE + "(assert (<= Y_0 0 1))", r"^f:6:9: '<=' takes two terms, got 3"),
    (ONE + "(assert (<= (* Y_0 Y_1) 1))", r"^f:6:13: a product of variables is not linear"),
    (ONE + "(assert (<= (/ 1 Y_1) 1))", r"^f:6:13: division by a variable is not linear"),
    (ONE + "(assert (<= Y_1 (/ 1 0.0)))", r"^f:6:17: division by zero"),
    (ONE + "(assert (<= (+ Y_0) 1))", r"^f:6:13: '\+' is given 1 terms; it needs at least two"),
    (ONE + "(assert (<= (sin Y_0) 1))", r"^f:6:13: unknown function 'sin'"),
    (ONE + "(assert " + "(and " * 200, r"^f:6:\d+: parentheses are nested deeper than 100"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=[str(i) for i in range(len(ERRORS))])
def test_errors_say_where_and_what(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse_vnnlib(text, "f")
    assert (caught.value.file, caught.value.line is None) == ("f", False)


def test_explosion_of_the_normal_form_is_refused() -> None:
    text = ONE + "".join("(assert (or (<= Y_0 0) (<= Y_1 0)))\n" for _ in range(40))
    with pytest.raises(SpecError, match=r"the disjunctive normal form has 1,099,511,627,776 conjunctions"):
        parse_vnnlib(text)
    inner = " ".join("(or (<= Y_0 0) (<= Y_1 0))" for _ in range(40))
    with pytest.raises(SpecError, match=r"^<text>:6:9: the disjunctive normal form has 1,099,511,627,776"):
        parse_vnnlib(ONE + f"(assert (and {inner}))")
    wide = "(and " + "(<= X_0 1)" * 100 + "(<= Y_0 0))"
    both = f"(assert (or {wide * 200}))\n" * 2
    with pytest.raises(SpecError, match=r"has 40,000 conjunctions, with 202 constraints copied to each"):
        parse_vnnlib(ONE + both)


# --- files -----------------------------------------------------------------------------------------------------


def test_plain_and_gzipped_files(tmp_path: Path) -> None:
    (tmp_path / "a.vnnlib").write_text(ONE + GOOD)
    (tmp_path / "b.vnnlib.gz").write_bytes(gzip.compress((ONE + GOOD).encode()))
    (tmp_path / "c.vnnlib").write_bytes("\ufeff".encode() + (ONE + GOOD).replace("\n", "\r\n").encode())
    for name in ("a.vnnlib", "b.vnnlib.gz", "b.vnnlib", "c.vnnlib"):
        prop = load_vnnlib(tmp_path / name)
        assert prop.cases[0].disjuncts[0].text == ("Y_0",)


def test_bad_files_are_named(tmp_path: Path) -> None:
    whole = gzip.compress((ONE + GOOD).encode())
    (tmp_path / "cut.gz").write_bytes(whole[:-12])
    (tmp_path / "flip.gz").write_bytes(whole[:30] + bytes([whole[30] ^ 0xFF]) + whole[31:])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, message in {
        "cut": r"cut\.gz: damaged gzip file",
        "flip.gz": r"flip\.gz: damaged gzip file",
        "binary": r"binary: not a text file",
        "absent": r"absent: no such file, also not with \.gz appended",
        ".": r"cannot be read \(Is a directory\)",
    }.items():
        with pytest.raises(SpecError, match=message):
            load_vnnlib(tmp_path / name)


def test_errors_in_files_name_the_path(tmp_path: Path) -> None:
    path = tmp_path / "bad.vnnlib"
    path.write_text(ONE + "(assert (<= Y_9 0))")
    with pytest.raises(SpecError) as caught:
        load_vnnlib(path)
    assert str(caught.value).startswith(f"{path}:6:13: Y_9 is used but not declared")


def test_a_large_file_parses_fast() -> None:
    rng = random.Random(0)
    limits = "".join(f"(assert (<= X_{i} {rng.random()}))\n(assert (>= X_{i} -{rng.random()}))\n" for i in range(3072))
    rows = "\n".join(f"(and (>= Y_{k} Y_0))" for k in range(1, 1000))
    text = declare(3072, 1000) + limits + f"(assert (or {rows}))"
    prop = parse_vnnlib(text)
    assert len(prop.cases) == 1
    assert len(prop.cases[0].disjuncts) == 999


def bench_check(path: Path) -> None:
    prop = load_vnnlib(path)
    found = path if path.exists() else path.with_name(path.name + ".gz")
    text = gzip.decompress(found.read_bytes()).decode() if found.suffix == ".gz" else found.read_text()
    rng = random.Random(0)
    outputs = prop.cases[0].disjuncts[0].C.shape[1]
    for case in prop.cases[:3]:
        assert case.limits is not None
        for _ in range(5):
            x = [Fraction(rng.choice(pair)) for pair in case.limits]
            y = [Fraction(rng.randint(-4, 4) if rng.random() < 0.9 else 10**6) for _ in range(outputs)]
            assert counterexample(prop, x, y) == says(text, x, y)
            place = rng.randrange(len(x))
            x[place] += rng.choice([-(10**9), 10**9])
            assert counterexample(prop, x, y) is says(text, x, y) is False


def instances(family: str) -> list[Path]:
    assert BENCH
    folder = Path(BENCH) / family
    with (folder / "instances.csv").open(newline="") as rows:
        return sorted({folder / row[1].strip() for row in csv.reader(rows) if row})


@needs_bench
@pytest.mark.parametrize("family", FAMILIES)
def test_first_file_of_every_benchmark(family: str) -> None:
    bench_check(instances(family)[0])


@needs_bench
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_files_of_every_benchmark(family: str) -> None:
    for path in instances(family):
        prop = load_vnnlib(path)
        assert all(case.disjuncts for case in prop.cases)


# --- properties ------------------------------------------------------------------------------------------------


def test_robust_box_and_rows() -> None:
    prop = robust(torch.tensor([[0.0, 0.5], [0.95, 1.0]]), 1, 0.1, 3)
    (case,) = prop.cases
    assert isinstance(case.region, Box)
    assert case.region.lower.dtype == torch.float64
    x = torch.tensor([[0.0, 0.5], [0.95, 1.0]]).double()
    assert torch.equal(case.region.lower, (x - 0.1).clamp(min=0)[None])
    assert torch.equal(case.region.upper, (x + 0.1).clamp(max=1)[None])
    assert [d.text for d in case.disjuncts] == [("Y_1 - Y_0",), ("Y_1 - Y_2",)]
    assert [d.C.tolist() for d in case.disjuncts] == [[[-1, 1, 0]], [[0, 1, -1]]]
    assert all(d.t.tolist() == [0] for d in case.disjuncts)
    assert case.disjuncts[0].holds(torch.tensor([1.0, 1.0, 0.0]))
    assert not case.disjuncts[0].holds(torch.tensor([1.0, math.nextafter(1, 2), 0.0], dtype=torch.float64))


@pytest.mark.parametrize("norm", [1, 2])
def test_robust_balls(norm: int) -> None:
    region = robust(torch.tensor([0.25, 0.5]), 0, 0.5, 2, norm=norm).cases[0].region
    assert isinstance(region, LpBall)
    assert (region.p, region.radius.tolist(), region.lower.tolist()) == (norm, [0.5], [[0.0, 0.0]])
    free = robust(torch.tensor([0.25, 0.5]), 0, 0.5, 2, norm=norm, clip=None).cases[0].region
    assert free.lower.tolist() == [[-0.25, 0.0]]


def test_robust_without_clip() -> None:
    assert robust(torch.tensor([7.0]), 0, 2.0, 2, clip=None).cases[0].region.upper.tolist() == [[9.0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": 3}, r"label 3 is not one of the 3 classes 0\.\.2"),
        ({"eps": -0.1}, r"eps must be a finite number >= 0"),
        ({"eps": math.nan}, r"eps must be a finite number >= 0"),
        ({"norm": 3}, r"norm must be 1, 2 or inf, got 3"),
        ({"classes": 1}, r"at least 2 classes, got 1"),
        ({"clip": (1, 0)}, r"clip range \(1, 0\) is empty"),
        ({"x": torch.tensor([2.5])}, r"values in \[2\.5, 2\.5\], outside the clip range \[0\.0, 1\.0\]"),
        ({"x": torch.tensor([math.nan])}, r"the input contains NaN or infinity"),
    ],
)
def test_robust_refuses_nonsense(arguments: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        robust(**({"x": torch.tensor([0.5]), "y": 0, "eps": 0.1, "classes": 3} | arguments))


def test_check_fits_names_both_numbers() -> None:
    prop = parse_vnnlib(ONE + GOOD)
    check_fits(prop, 1, 2)
    with pytest.raises(SpecError, match=r"the property has 1 inputs, the network has 784"):
        check_fits(prop, 784, 2)
    with pytest.raises(SpecError, match=r"the property has 2 outputs, the network has 10"):
        check_fits(prop, 1, 10)


# --- line breaks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_comments_end_at_any_line_break(end: str):
    """SMT-LIB ends a comment at LF or CR: what follows a lone CR is part of the property."""
    text = ONE + f"(assert (or ; two cases{end} (<= Y_0 5){end} (<= Y_0 -5)))\n"
    (case,) = parse_vnnlib(text).cases
    assert [disjunct.t.tolist() for disjunct in case.disjuncts] == [[5.0], [-5.0]]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_places_count_any_line_break(end: str):
    lines = [*ONE.splitlines(), "", "; )(", "  (assert (<= Y_0 Y_7))"]
    with pytest.raises(SpecError, match=rf"^f:{len(lines)}:19: Y_7 is used but not declared") as caught:
        parse_vnnlib(end.join(lines), "f")
    assert (caught.value.line, caught.value.column) == (len(lines), 19)
