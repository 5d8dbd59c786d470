"""The demo: its pieces, a run on a tiny budget, and (slow) the run that users get."""

from __future__ import annotations

import io
import json
import re
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rich.console import Console

from surebound.data.digits import load_digits
from surebound.demo import DemoConfig, DemoSummary, run_demo, telling
from surebound.errors import SpecError, UsageError
from surebound.graph.onnx_import import load_onnx
from surebound.graph.torch_export import trace
from surebound.measures.verified import EvaluateConfig, Judged, evaluate, shares
from surebound.nets.small import digits_cnn
from surebound.properties import Case, Disjunct, Property, robust
from surebound.regions import Box
from surebound.reports.demo_page import NetworkReport, conclusion, in_words
from surebound.reports.figures import image_strip, proven_over_time, verdict_bars
from surebound.reports.html import Code, Heading, Picture, Quote, Text, page
from surebound.reports.table import Table, duration, in_terminal, percent
from surebound.runs import load_network, to_toml
from surebound.search.run import VerifyConfig
from surebound.search.verdict import Falsified, Outcome, Unknown, Verified
from surebound.search.verify import verify
from surebound.vnnlib import load_vnnlib, parse_vnnlib
from surebound.vnnlib.write import vnnlib_text
from surebound.witness import Witness

TINY = DemoConfig(
    channels=(2, 4), hidden=8, epochs=2, graft_epochs=1, criterion_images=32, images=6, timeout=0.2, attack_steps=3,
    attack_restarts=1,
)  # fmt: skip


# ---------------------------------------------------------------- VNN-LIB


def test_a_written_property_reads_back_as_the_same_property() -> None:
    x = torch.rand(1, 3, 2, generator=torch.Generator().manual_seed(0))
    asked = robust(x, 2, 0.1, 4)
    back = parse_vnnlib(vnnlib_text(asked, "a comment\nof two lines"), shape=(1, 3, 2))
    (case,), (written,) = asked.cases, back.cases
    assert torch.equal(case.region.lower, written.region.lower)
    assert torch.equal(case.region.upper, written.region.upper)
    assert len(written.disjuncts) == 3
    for one, two in zip(case.disjuncts, written.disjuncts, strict=True):
        assert torch.equal(one.C, two.C) and torch.equal(one.t, two.t)


def test_general_rows_and_given_decimals_are_written_exactly() -> None:
    rows = Disjunct(
        torch.tensor([[0.5, -3.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]], dtype=torch.float64),
        torch.tensor([0.1, 2.0, -1e-30], dtype=torch.float64),
        ("", "", ""),
    )
    box = Box(torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 0.3, dtype=torch.float64))
    text = vnnlib_text(Property((Case(box, (rows,), ((Decimal("0"), Decimal("0.3")),)),)))
    assert "(assert (<= X_0 0.3))" in text and "(>= Y_2 -2)" in text
    assert not re.search("[0-9]e", text, re.IGNORECASE)
    (case,) = parse_vnnlib(text).cases
    assert torch.equal(case.disjuncts[0].C, rows.C) and torch.equal(case.disjuncts[0].t, rows.t)


def test_what_the_plain_form_cannot_say_is_refused() -> None:
    asked = robust(torch.rand(2), 0, 0.1, 2)
    with pytest.raises(SpecError, match="states one box, the property has 2"):
        vnnlib_text(Property(asked.cases * 2))
    with pytest.raises(SpecError, match="LpBall cannot be written"):
        vnnlib_text(robust(torch.rand(2), 0, 0.1, 2, norm=2))


# ---------------------------------------------------------------- judging


def test_judged_images_agree_with_the_network_and_with_crown() -> None:
    network, part, eps = digits_cnn(0, (2, 3), 5).eval(), load_digits(0).test.first(12), 0.002
    config = EvaluateConfig(search=VerifyConfig(timeout=5))
    found = evaluate(trace(network, part.images), part, eps, config=config)
    answers = network(part.images).argmax(1)
    assert [item.index for item in found] == part.indices.tolist()
    assert [item.prediction for item in found] == answers.tolist()
    assert [item.status == "wrong" for item in found] == (answers != part.labels).tolist()
    assert all((item.outcome is None) == (item.status == "wrong") for item in found)
    assert shares(found)["wrong"] == pytest.approx(float((answers != part.labels).double().mean()))
    assert sum(shares(found).values()) == pytest.approx(1)


def outcome(verdict: Verified | Falsified | Unknown, nodes: int = 3) -> Outcome:
    return Outcome(verdict, nodes, "test", {}, 0.5)


def test_words_for_every_outcome() -> None:
    proven = in_words(outcome(Verified(0.3123), 1234), 3, 0.12, 1.0)
    assert proven == (
        "For every one of the images that differ from this one by at most 0.12 in each pixel, the network answers 3. "
        "Proven with 1,234 sub-problems; the score of 3 stays at least 0.31 above every other."
    )
    assert "Proven with one bound" in in_words(outcome(Verified(0.3), 1), 3, 0.12, 1.0)
    witness = Witness((Decimal(0),), torch.zeros(1), torch.tensor([0.0, 0.0, 2.0]), 0, 0)
    assert "gets the answer 2 instead of 1" in in_words(outcome(Falsified(witness)), 1, 0.12, 1.0)
    assert in_words(outcome(Unknown("time is over", "timeout")), 1, 0.12, 1.5).startswith(
        "Undecided: after 3 sub-problems and 1.5 s"
    )
    assert in_words(None, 7, 0.1, 1.0) == "The network takes this 7 for another digit to begin with."


def test_the_image_shown_is_one_that_grafting_made_provable_if_there_is_one() -> None:
    def item(status: str, margin: float) -> Judged:
        verdict = Verified(margin) if status == "verified" else Unknown("open")
        return Judged(0, 0, 0, status, outcome(verdict))  # pyright: ignore[reportArgumentType]

    before = [item("verified", 1), item("unknown", 9), item("unknown", 9), item("unknown", 9)]
    after = [item("verified", 50), item("verified", 2), item("verified", 4), item("unknown", 99)]
    assert telling(before, after) == 2
    assert telling(before[:1], after[:1]) == 0
    assert telling(before[2:], [item("unknown", 5), item("unknown", 7)]) == 0


# ---------------------------------------------------------------- reports


def network_report(name: str, **values: float) -> NetworkReport:
    base = {"n": 80, "clean": 1.0, "attacked": 0.9, "verified": 0.25, "unknown": 0.65, "falsified": 0.1, "wrong": 0.0,
            "neurons": 1600, "unstable": 500.0, "seconds": 0.8, "nodes": 40.0}  # fmt: skip
    return NetworkReport(name=name, **{**base, **values})  # pyright: ignore[reportArgumentType]


def test_the_conclusion_says_what_the_numbers_say_even_when_grafting_hurts() -> None:
    before = network_report("dense")
    better = conclusion((before, network_report("grafted", verified=0.5, seconds=0.2), network_report("pruned")))
    worse = conclusion((before, network_report("grafted", verified=0.2, seconds=1.6), network_report("pruned")))
    same = conclusion((before, network_report("grafted"), network_report("pruned")))
    assert "verified accuracy rose from 25\N{NO-BREAK SPACE}% to 50\N{NO-BREAK SPACE}%" in better
    assert "4.0 times less time" in better
    assert "verified accuracy fell from 25\N{NO-BREAK SPACE}% to 20\N{NO-BREAK SPACE}%" in worse
    assert "2.0 times more time" in worse
    assert "accuracy under attack stayed at 90\N{NO-BREAK SPACE}%" in same


def test_numbers_are_as_precise_as_they_can_be() -> None:
    assert (percent(0.625, 80), percent(0.625, 1000)) == ("62\N{NO-BREAK SPACE}%", "62.5\N{NO-BREAK SPACE}%")
    shown = [duration(seconds) for seconds in (0.0123, 0.9999, 12.34, 123.4)]
    assert shown == [
        f"{text}\N{NO-BREAK SPACE}{unit}" for text, unit in (("12", "ms"), ("1.0", "s"), ("12.3", "s"), ("123", "s"))
    ]


def test_tables_in_the_terminal_and_rows_that_do_not_fit() -> None:
    table = Table(("", "before", "after"), (("Verified", "25 %", "50 %"),), "Title", frozenset({2}))
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(in_terminal(table))
    text = console.export_text()
    assert "Title" in text and re.search(r"Verified\W+25 %\W+50 %", text)
    with pytest.raises(UsageError, match="a row of 1 texts does not fit 2 columns"):
        Table(("a", "b"), (("x",),))


class Outline(HTMLParser):
    """Tags in order, and everything that a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)
        self.sources += [value or "" for key, value in attrs if key in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_well_formed_escaped_and_loads_nothing() -> None:
    table = Table(("", "a<b"), (("<x>", "1 & 2"),), emphasis=frozenset({1}))
    parts = [
        Heading("H<1>"),
        Text("a & b"),
        Quote("<q>"),
        Code("<c>"),
        Picture(b"png", 'a "quoted" alt', "<cap>"),
        table,
    ]
    text = page("T<itle>", "lead & more", parts)
    outline = Outline(text)
    assert outline.open == []
    assert outline.sources == ["data:image/png;base64,cG5n"]
    assert "://" not in text and "@import" not in text and "url(" not in text
    for escaped in ("T&lt;itle&gt;", "H&lt;1&gt;", "a &amp; b", "&lt;q&gt;", "&lt;c&gt;", "&lt;cap&gt;", "&lt;x&gt;"):
        assert escaped in text


def test_figures_are_png_and_cope_with_nothing_proven() -> None:
    parts = {"verified": 0.0, "unknown": 0.9, "falsified": 0.1, "wrong": 0.0}
    for png in (
        verdict_bars({"one": parts, "two": parts}),
        proven_over_time({"one": [], "two": [0.1, 0.2]}, 10, 1.0),
        image_strip([torch.rand(8, 8).numpy()], ["the image"]),
    ):
        assert png.startswith(b"\x89PNG\r\n") and len(png) > 1000


def test_toml_puts_tables_last_and_refuses_what_it_cannot_say() -> None:
    text = to_toml({"settings": {"eps": 0.1, "channels": (16, 32), "inner": {"on": True}}, "command": "demo"})
    assert text == 'command = "demo"\n\n[settings]\neps = 0.1\nchannels = [16, 32]\n\n[settings.inner]\non = true\n'
    with pytest.raises(UsageError, match="cannot hold a NoneType"):
        to_toml({"x": None})


# ---------------------------------------------------------------- the run


def check_run(summary: DemoSummary) -> None:
    """What holds for any demo run, whatever it found."""
    out = summary.out
    names = {path.name for path in out.iterdir()}
    stems = {f"{stem}.{kind}" for stem in ("model", "grafted", "pruned") for kind in ("safetensors", "json", "onnx")}
    assert names == stems | {
        "config.toml", "metrics.jsonl", "summary.json", "plots", "report.html", "property.vnnlib",
    }  # fmt: skip
    assert {path.name for path in (out / "plots").iterdir()} == {"verdicts.png", "time.png", "image.png"}
    found = json.loads((out / "summary.json").read_text())
    assert found["schema"] == 1 and found["grafted"] == 0.5
    assert [network["name"] for network in found["networks"]] == ["dense", "grafted", "pruned"]
    for network in summary.networks:
        assert network.verified + network.unknown + network.falsified + network.wrong == pytest.approx(1)
        assert network.verified <= network.attacked + 1e-9 <= network.clean + 2e-9
        assert network.clean == pytest.approx(1 - network.wrong)
        assert 0 < network.unstable < network.neurons
    dense, grafted, pruned = summary.networks
    assert grafted.unstable < dense.unstable and pruned.unstable < dense.unstable
    for name, count in (("model", 0), ("grafted", 1), ("pruned", 1)):
        masks = [module.mask for module in load_network(out, name).modules() if hasattr(module, "mask")]
        assert sum(int(mask.sum()) for mask in masks) == count * dense.neurons // 2  # pyright: ignore
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    counts = {kind: sum(line["kind"] == kind for line in lines) for kind in ("epoch", "image")}
    config = summary.config
    assert counts == {"epoch": config.epochs + 2 * config.graft_epochs, "image": 3 * dense.n}
    text = summary.report.read_text(encoding="utf-8")
    assert Outline(text).open == [] and all(s.startswith("data:image/png;base64,") for s in Outline(text).sources)
    assert "://" not in text, "an address; letters alone may stand by chance in a picture's base64, a colon cannot"
    assert summary.image.after in text and str(out) not in text


def check_files(summary: DemoSummary) -> None:
    """The two files say the same as the run: network, region and, where there is one, the verdict."""
    graph, network = load_onnx(summary.model), load_network(summary.out, "grafted")
    asked = load_vnnlib(summary.spec, graph.input.shape)
    points = asked.cases[0].region.sample(5, torch.Generator().manual_seed(0))[0].float()
    images = points.reshape(-1, 1, 8, 8)
    assert graph.original is not None
    assert torch.allclose(graph.original(points).flatten(1), network(images), atol=1e-5)
    (found,) = verify(graph, [asked], VerifyConfig(timeout=10))
    if summary.image.verdict in ("sat", "unsat"):
        assert found.verdict.name == summary.image.verdict
    if summary.image.after.startswith("For every"):
        assert summary.image.verdict == "unsat"
        assert bool((network(images).argmax(1) == summary.image.label).all())


def test_a_tiny_run_leaves_everything_behind(tmp_path: Path) -> None:
    said: list[str] = []
    summary = run_demo(tmp_path / "run", seed=0, progress=said.append, config=TINY)
    check_run(summary)
    check_files(summary)
    assert any(message.startswith("training the dense network: epoch 1 of 2") for message in said)
    assert [row[0] for row in summary.table.rows][2] == "Verified accuracy"
    assert summary.table.columns == ("", "before", "after grafting", "after pruning")


def test_two_runs_with_seed_zero_train_the_same_networks(tmp_path: Path) -> None:
    from dataclasses import replace

    config = replace(TINY, epochs=1, images=2, channels=(1, 1), hidden=2)
    runs = [run_demo(tmp_path / name, seed=0, config=config) for name in ("a", "b")]
    for stem in ("model", "grafted", "pruned"):
        first, second = (load_network(run.out, stem).state_dict() for run in runs)
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to the folder"):
        run_demo(tmp_path / "file", config=TINY)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_shows_that_grafting_makes_the_network_easier_to_prove(tmp_path: Path) -> None:
    summary = run_demo(tmp_path / "run")
    check_run(summary)
    check_files(summary)
    dense, grafted, pruned = summary.networks
    assert dense.clean > 0.95 and grafted.clean > 0.95
    assert dense.unknown > 0.1
    assert min(grafted.verified, pruned.verified) > dense.verified  # which of the two is ahead is up to the time limit
    assert grafted.unknown < dense.unknown and grafted.unstable < 0.6 * dense.unstable
    assert grafted.seconds < dense.seconds
    assert summary.image.verdict == "unsat"
