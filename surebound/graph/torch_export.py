"""From a module to a graph: `trace`.

torch.export captures the module with a symbolic batch size; a table of small functions maps the exporter's
operations to the op table's, with the batch axis taken away; the result is compared with the module.
What doesn't depend on the input and has no rule (a weight norm, a computed mask) stays torch and is
evaluated on the live parameters at every query.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from surebound.errors import UsageError
from surebound.graph.ir import Graph
from surebound.graph.module_original import ModuleOriginal, require_eval, require_precision
from surebound.graph.torch_frontend.compare import compare
from surebound.graph.torch_frontend.export import exported, run_once
from surebound.graph.torch_frontend.program import to_graph
from surebound.graph.torch_frontend.rules import REFUSED, RULES, names
from surebound.ops import OPS, Op


def trace(module: nn.Module, example: Tensor, ops: Mapping[str, Op] | None = None) -> Graph:
    """The module as a graph that computes the same outputs and reads the module's parameters live.

    example: a batch [B, *input shape] with any B >= 1; only its shape matters. ops: the op table
    (default `surebound.ops.OPS`). A torch op without a rule here is looked up in `ops` under its torch name
    ("aten.erf"): its tensor arguments become operands and the others attrs, named as in torch's schema.
    Live are the module's tensors: parameters, buffers and tensors that are plain attributes, reassigned ones too.
    Everything else is read once, while tracing: numbers and options held by the module, its submodules, the forward
    itself. After changing those trace again; `verify` compares the graph with the module anew and refuses if they
    differ, bounds do not.
    Raises UsageError (training mode, half precision, unusable example), UnsupportedOp (an op without a rule, or
    one that mixes samples), ModelError (the exporter gave up, NaN in a parameter), TraceMismatch.
    """
    table = OPS if ops is None else ops
    sample = usable_example(module, example)
    original = ModuleOriginal(module, sample.dtype)
    require_precision(original)
    batch = sample.to(original.device, original.dtype)
    run_once(original, batch)
    known = RULES.keys() | REFUSED.keys() | table.keys()
    program = exported(module, batch, lambda op: not known.isdisjoint(names(op)))
    graph = to_graph(program, module, table, original)
    compare(graph, original, batch)
    return graph


def usable_example(module: nn.Module, example: Tensor) -> Tensor:
    """Two samples of the example, after checking both arguments."""
    if not isinstance(module, nn.Module):
        raise UsageError(f"trace needs a torch.nn.Module, not {type(module).__name__}")
    if not isinstance(example, Tensor) or not example.is_floating_point():
        kind = f"a tensor of {example.dtype}" if isinstance(example, Tensor) else f"a {type(example).__name__}"
        raise UsageError(f"the example must be a floating-point tensor [batch, *input shape], not {kind}")
    if example.dim() == 0 or example.shape[0] == 0:
        raise UsageError(f"the example must hold at least one sample along axis 0; its shape is {list(example.shape)}")
    require_eval(module)
    return torch.cat([example.detach()[:1]] * 2) if example.shape[0] == 1 else example.detach()[:2]
