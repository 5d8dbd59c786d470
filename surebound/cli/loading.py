"""Opening what a command is given. Imports the heavy libraries: commands import it when they run."""

from __future__ import annotations

from pathlib import Path

from surebound.graph.ir import Graph
from surebound.instance import load_network, load_property
from surebound.properties import Property


def load(model: Path, spec: Path) -> tuple[Graph, Property]:
    """The network and the property, which fit each other; raises what `surebound.instance` does."""
    graph = load_network(model)
    return graph, load_property(spec, graph)
