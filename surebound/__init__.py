"""Surebound makes neural networks provable: trace or load one, state a property, verify it.

    graph = surebound.trace(module, example)            # or surebound.load_onnx("net.onnx")
    prop = surebound.robust(x, label, eps=0.01, classes=10)
    (outcome,) = surebound.verify(graph, [prop])

Names are imported from their modules when they are first used, so `import surebound` costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surebound.bounds.alpha import AlphaCrown
    from surebound.bounds.crown import Crown, Ibp
    from surebound.bounds.query import Bounds, Query
    from surebound.data.readers import load_dataset
    from surebound.errors import (
        DataError,
        InvalidGraph,
        ModelError,
        OutOfMemory,
        ParametersChanged,
        SpecError,
        SureboundError,
        TraceMismatch,
        UnsupportedOp,
        UsageError,
    )
    from surebound.graph.ir import Graph
    from surebound.graph.onnx_import import load_onnx
    from surebound.graph.prepare import prepare
    from surebound.graph.torch_export import trace
    from surebound.measures.verified import EvaluateConfig, evaluate
    from surebound.properties import Property, robust
    from surebound.regions import Box, LpBall
    from surebound.search.run import VerifyConfig
    from surebound.search.verdict import Falsified, Outcome, Unknown, Verified
    from surebound.search.verify import verify
    from surebound.vnnlib import load_vnnlib
    from surebound.witness import Witness

__version__ = "0.1.0"

_HOMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "surebound.bounds.alpha": ("AlphaCrown",),
        "surebound.bounds.crown": ("Crown", "Ibp"),
        "surebound.bounds.query": ("Bounds", "Query"),
        "surebound.data.readers": ("load_dataset",),
        "surebound.errors": (
            "DataError",
            "InvalidGraph",
            "ModelError",
            "OutOfMemory",
            "ParametersChanged",
            "SpecError",
            "SureboundError",
            "TraceMismatch",
            "UnsupportedOp",
            "UsageError",
        ),
        "surebound.graph.ir": ("Graph",),
        "surebound.graph.onnx_import": ("load_onnx",),
        "surebound.graph.prepare": ("prepare",),
        "surebound.graph.torch_export": ("trace",),
        "surebound.measures.verified": ("EvaluateConfig", "evaluate"),
        "surebound.properties": ("Property", "robust"),
        "surebound.regions": ("Box", "LpBall"),
        "surebound.search.verdict": ("Falsified", "Outcome", "Unknown", "Verified"),
        "surebound.search.verify": ("VerifyConfig", "verify"),
        "surebound.vnnlib": ("load_vnnlib",),
        "surebound.witness": ("Witness",),
    }
)
_HOME: Mapping[str, str] = MappingProxyType({name: module for module, names in _HOMES.items() for name in names})

__all__ = [
    "AlphaCrown",
    "Bounds",
    "Box",
    "Crown",
    "DataError",
    "EvaluateConfig",
    "Falsified",
    "Graph",
    "Ibp",
    "InvalidGraph",
    "LpBall",
    "ModelError",
    "OutOfMemory",
    "Outcome",
    "ParametersChanged",
    "Property",
    "Query",
    "SpecError",
    "SureboundError",
    "TraceMismatch",
    "Unknown",
    "UnsupportedOp",
    "UsageError",
    "Verified",
    "VerifyConfig",
    "Witness",
    "evaluate",
    "load_dataset",
    "load_onnx",
    "load_vnnlib",
    "prepare",
    "robust",
    "trace",
    "verify",
]


def __getattr__(name: str) -> Any:
    """A public name, imported from its module."""
    if name not in _HOME:
        raise AttributeError(f"module 'surebound' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, "__version__"])
