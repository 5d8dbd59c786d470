"""An instance: the files of a network and of a property that is asked of it."""

from __future__ import annotations

from pathlib import Path

from surebound.errors import NotYet, SpecError
from surebound.graph.ir import Graph
from surebound.graph.onnx_import import load_onnx
from surebound.properties import Property, check_fits
from surebound.vnnlib import load_vnnlib


def load_network(model: Path) -> Graph:
    """The network of an ONNX file.

    Raises ModelError, UnsupportedOp, and NotYet for a network with several inputs or outputs.
    """
    graph = load_onnx(model)
    counts = len(graph.inputs), len(graph.outputs)
    if counts != (1, 1):
        raise NotYet(
            f"{model} has {counts[0]} inputs ({', '.join(graph.inputs)}) and {counts[1]} outputs "
            f"({', '.join(graph.outputs)}); properties of networks with one of each are supported"
        )
    return graph


def load_property(spec: Path, graph: Graph) -> Property:
    """The property of a VNN-LIB file, which fits the network; raises SpecError."""
    prop = load_vnnlib(spec, graph.input.shape)
    try:
        check_fits(prop, graph.input.numel, graph.output.numel)
    except SpecError as error:
        raise SpecError(str(error), str(spec)) from None
    return prop
