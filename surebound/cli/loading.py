"""Opening what a command is given. Imports the heavy libraries: commands import it when they run."""

from __future__ import annotations

from pathlib import Path

from surebound.cli.output import NotYet
from surebound.errors import SpecError
from surebound.graph.ir import Graph
from surebound.graph.onnx_import import load_onnx
from surebound.properties import Property, check_fits
from surebound.vnnlib import load_vnnlib


def load(model: Path, spec: Path) -> tuple[Graph, Property]:
    """The network and the property, which fit each other.

    Raises ModelError, SpecError, UnsupportedOp, and NotYet for a network with several inputs or outputs.
    """
    graph = load_onnx(model)
    counts = len(graph.inputs), len(graph.outputs)
    if counts != (1, 1):
        raise NotYet(
            f"{model} has {counts[0]} inputs ({', '.join(graph.inputs)}) and {counts[1]} outputs "
            f"({', '.join(graph.outputs)}); properties of networks with one of each are supported"
        )
    prop = load_vnnlib(spec, graph.input.shape)
    try:
        check_fits(prop, graph.input.numel, graph.output.numel)
    except SpecError as error:
        raise SpecError(str(error), str(spec)) from None
    return graph, prop
