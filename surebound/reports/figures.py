"""Figures as PNG bytes, drawn with matplotlib without its global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surebound.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#1d2b3a", "#6b7a89", "#e3e8ed"
STATUS = {"verified": "#2a7f62", "unknown": "#c9d1d9", "falsified": "#d1603d", "wrong": "#8c2f39"}
STATUS_WORDS = {
    "verified": "proven",
    "unknown": "undecided",
    "falsified": "counterexample",
    "wrong": "wrong to begin with",
}
LINES = ("#8494a6", "#2a7f62", "#d1603d", "#3d6fb4")


def verdict_bars(shares: Mapping[str, Mapping[str, float]]) -> bytes:
    """One horizontal bar per network, divided by status; shares[network][status] are fractions."""
    figure = _figure(7.2, 0.6 + 0.62 * len(shares))
    axes = figure.subplots()
    for place, parts in enumerate(shares.values()):
        left = 0.0
        for status, colour in STATUS.items():
            width = 100 * parts[status]
            axes.barh(place, width, left=left, color=colour, height=0.62, label=STATUS_WORDS[status])
            if width >= 6:
                dark = status != "unknown"
                axes.text(left + width / 2, place, f"{width:.0f}", ha="center", va="center", fontsize=9,
                          color="white" if dark else INK)  # fmt: skip
            left += width
    axes.set_yticks(range(len(shares)), list(shares))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the test images")
    _plain(axes, grid="x")
    handles, labels = axes.get_legend_handles_labels()
    count = len(STATUS)
    figure.legend(handles[:count], labels[:count], loc="outside upper center", ncols=count, frameon=False, fontsize=9)
    return _png(figure)


def proven_over_time(seconds: Mapping[str, Sequence[float]], count: int, limit: float) -> bytes:
    """For each network the share of `count` images proven within t seconds each, for t up to `limit`.

    seconds[network]: the times of the images that were proven.
    """
    figure = _figure(7.2, 2.6)
    axes = figure.subplots()
    for colour, (name, times) in zip(LINES, seconds.items(), strict=False):
        ordered = np.sort(np.asarray(times, float))
        x = np.concatenate([[0.0], ordered, [max(limit, float(ordered[-1]) if len(ordered) else 0.0)]])
        y = 100 * np.concatenate([[0], np.arange(1, len(ordered) + 1), [len(ordered)]]) / count
        axes.step(1000 * x, y, where="post", color=colour, linewidth=2, label=name)
    axes.set_xlabel("time allowed per image (ms)")
    axes.set_ylabel("% of the test images proven")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    _plain(axes, grid="both")
    axes.legend(frameon=False, fontsize=9, loc="best")
    return _png(figure)


def image_strip(images: Sequence[NDArray[np.floating]], titles: Sequence[str]) -> bytes:
    """Grey images [H, W] in [0, 1] side by side, each under its title."""
    figure = _figure(1.45 * len(images), 1.75)
    for axes, image, title in zip(figure.subplots(1, len(images), squeeze=False)[0], images, titles, strict=True):
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=9, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(GRID)
    return _png(figure)


def require_matplotlib() -> None:
    """Raise UsageError where it is not installed; for asking before long work."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(f"figures need matplotlib: pip install matplotlib ({error})") from error


def _figure(width: float, height: float) -> Figure:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plain(axes: Axes, grid: str) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=FAINT, labelsize=9, length=0)
    axes.xaxis.label.set(color=FAINT, fontsize=9)
    axes.yaxis.label.set(color=FAINT, fontsize=9)
    for label in axes.get_yticklabels():
        label.set_color(INK)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)  # pyright: ignore[reportArgumentType]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


FEW = 10
"""Fewer epochs are drawn with a dot each; of a single one a line would show nothing."""

COURSES = {
    "loss": (("loss",), "training loss"),
    "accuracy": (("clean", "pgd", "certified"), "% of the validation images"),
    "unstable": (("unstable",), "unstable neurons per image"),
    "eps": (("eps",), "radius"),
}
"""By picture: what it shows of the epochs of a run, and the words at its axis."""


def side_by_side(networks: Mapping[str, Mapping[str, Any]], measures: Sequence[str]) -> bytes:
    """Horizontal bars of some fractions, a group for each network."""
    require_matplotlib()
    figure = _figure(7.2, 0.8 + 0.2 * (len(measures) + 1) * len(networks))
    axes = figure.subplots()
    for place, (colour, measure) in enumerate(zip(LINES, measures, strict=False)):
        at = [row * (len(measures) + 1) + place for row in range(len(networks))]
        axes.barh(at, [100 * float(each[measure]) for each in networks.values()], color=colour, label=measure)
    axes.set_yticks(
        [row * (len(measures) + 1) + (len(measures) - 1) / 2 for row in range(len(networks))], list(networks)
    )
    axes.invert_yaxis()
    axes.set_xlabel("% of the validation images")
    axes.set_xlim(0, 100)
    _plain(axes, grid="x")
    figure.legend(loc="outside upper center", ncols=len(measures), frameon=False, fontsize=9)
    return _png(figure)


def against_steps(rows: Sequence[Mapping[str, Any]], chosen: str) -> dict[str, bytes]:
    """Accuracies of candidates in their order, and seconds per image; the chosen one is marked."""
    require_matplotlib()
    pictures: dict[str, bytes] = {}
    place = [row["name"] for row in rows].index(chosen)
    for name, series, label, scale in (
        ("accuracy", ("clean", "attacked", "verified"), "% of the validation images", 100),
        ("seconds", ("seconds",), "seconds per image", 1),
    ):
        figure = _figure(7.2, 3.0)
        axes = figure.subplots()
        for colour, key in zip(LINES[1:], series, strict=False):
            axes.plot(range(len(rows)), [scale * float(row[key]) for row in rows], color=colour, label=key, marker="o",
                      markersize=4)  # fmt: skip
        axes.axvline(place, color=FAINT, linestyle=":", linewidth=1)
        axes.set_xticks(range(len(rows)), [row["name"].replace("step-", "") for row in rows], rotation=60, fontsize=8)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        _plain(axes, grid="y")
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=9)
        pictures[name] = _png(figure)
    return pictures


CURVES: Mapping[str, tuple[tuple[str, ...], str, float]] = {
    "accuracy": (("clean", "attacked", "verified"), "% of the validation images", 100),
    "stability": (("unstable", "crown"), "% of the neurons unstable", 100),
    "instability": (("instability", "before_norm"), "mean -lu", 1),
    "seconds": (("seconds",), "seconds per image", 1),
    "megabytes": (("megabytes",), "MB to decide all images", 1),
}
"""Pictures of a curve of sparsity: which columns, in what words, times what."""


def against_sparsity(rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """A picture per row of `CURVES`: measures against the part of the weights, or of the neurons, that is gone."""
    require_matplotlib()
    if max(float(row["grafted"]) for row in rows) > 0:
        words, where = "% of the neurons that are lines", [100 * float(row["grafted"]) for row in rows]
    else:
        convs = min(float(row["kernels"]) for row in rows) < 1
        words = "% of the kernels' weights that are zero" if convs else "% of the weights that are zero"
        where = [100 - 100 * float(row["kernels" if convs else "weights"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda place: where[place])
    pictures: dict[str, bytes] = {}
    for name, (series, label, scale) in CURVES.items():
        figure = _figure(7.2, 2.8)
        axes = figure.subplots()
        for colour, key in zip(LINES[1:], series, strict=False):
            points = [(where[place], rows[place][key]) for place in order if rows[place][key] is not None]
            axes.plot([x for x, _ in points], [scale * y for _, y in points], color=colour, label=key, marker="o",
                      markersize=4)  # fmt: skip
        axes.set_xlabel(words)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        _plain(axes, grid="y")
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=9)
        pictures[name] = _png(figure)
    return pictures


def courses(epochs: Sequence[Mapping[str, float]]) -> dict[str, bytes]:
    """A picture per row of `COURSES` of which something was measured: how a training run went.

    epochs: its lines of metrics, in order.
    """
    require_matplotlib()
    from matplotlib.ticker import MaxNLocator

    pictures: dict[str, bytes] = {}
    for name, (series, words) in COURSES.items():
        rows = [row for row in epochs if all(key in row for key in series)]
        if not rows:
            continue
        figure = _figure(7.2, 2.8)
        axes = figure.subplots()
        scale = 100 if name == "accuracy" else 1
        for colour, key in zip(LINES[1:], series, strict=False):
            axes.plot([row["number"] + 1 for row in rows], [scale * row[key] for row in rows], color=colour, label=key,
                      marker="o" if len(rows) < FEW else "", markersize=4)  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel(words)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter("{x:,.6g}")  # the numbers themselves, no offset or factor at the axis
        _plain(axes, grid="y")
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=9)
        pictures[name] = _png(figure)
    return pictures
