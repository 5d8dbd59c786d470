"""A network in training and its graph: what bounds are computed on while the weights change.

Batch norm: the graph is traced in evaluation mode, and the moments it reads are arguments of every pass. In training
they are those of the last forward pass in training mode, with their gradients (Shi et al. 2021); a pass over the box
never makes moments of its own. Norms behind a convolution, which has fewer weights than values, are folded into it:
s = weight / sqrt(var + eps);  W -> s W,  b -> s (b - mean) + bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surebound.attacks.adversarial import evaluating
from surebound.bounds.plan import Plan, plan
from surebound.errors import UsageError
from surebound.graph.check import check
from surebound.graph.ir import Graph, Node, evaluate
from surebound.graph.passes import settled
from surebound.graph.prepare import prepare
from surebound.graph.torch_export import trace

Moments = Mapping[str, Tensor]
"""Mean and biased variance of a batch at every norm, by the name of the buffer that they stand in for."""


@dataclass(frozen=True)
class Fold:
    """A norm that a convolution has taken in. weight, bias: the layer's parameters; made: the names of the new ones;
    scale, shift, mean, var: the norm's parameters.
    """

    weight: str
    bias: str | None
    made: tuple[str, str]
    scale: str
    shift: str
    mean: str
    var: str
    eps: float

    def folded(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The new weight and bias."""
        weight = values[self.weight]
        scale = values[self.scale] * torch.rsqrt(values[self.var] + self.eps)
        bias = -values[self.mean] if self.bias is None else values[self.bias] - values[self.mean]
        return {
            self.made[0]: weight * scale.reshape(-1, *[1] * (weight.dim() - 1)),
            self.made[1]: torch.addcmul(values[self.shift], bias, scale),
        }


def fold_norms(graph: Graph) -> tuple[Graph, tuple[Fold, ...]]:
    """The graph without the norms that directly follow a convolution which nobody else reads.

    The layer keeps the norm's name and reads two new parameters, which `Fold.folded` computes.
    """
    folds: list[Fold] = []
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        nodes[node.name] = node
        if node.op != "batch_norm":
            continue
        layer = graph[node.inputs[0]]
        if layer.op != "conv2d" or graph.consumers[layer.name] != (node.name,) or layer.name in graph.outputs:
            continue
        if any(graph[name].op != "parameter" for name in layer.inputs[1:]):
            continue
        x, weight, *bias = layer.inputs
        made = (f"{node.name}.folded_weight", f"{node.name}.folded_bias")
        scale, shift, mean, var = node.inputs[1:]
        folds.append(Fold(weight, bias[0] if bias else None, made, scale, shift, mean, var, node.attrs["eps"]))
        del nodes[layer.name], nodes[node.name]
        nodes[made[0]] = replace(graph[weight], name=made[0])
        nodes[made[1]] = replace(graph[node.inputs[1]], name=made[1])
        nodes[node.name] = replace(layer, name=node.name, inputs=(x, *made))
    return check(graph.with_nodes(list(nodes.values()))), tuple(folds)


class MeanAndVariance(torch.autograd.Function):
    """x [B, C, ...] -> mean and biased variance per channel, [C] each.

    By batch norm's kernel, several times faster than `torch.var_mean` over these axes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        _, mean, inverse = torch.native_batch_norm(x, None, None, None, None, True, 0.0, 0.0)
        ctx.save_for_backward(x, mean)
        spread = torch.where(inverse > 0, inverse.reciprocal(), torch.zeros_like(inverse))  # 0 tells of a constant
        return mean, spread.square_()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_mean, of_var = grad_outputs
        x, mean = ctx.saved_tensors
        count, tail = x.numel() // x.shape[1], (-1, *[1] * (x.dim() - 2))
        slope = of_var * (2 / count)
        offset = of_mean / count - slope * mean
        return torch.addcmul(offset.reshape(tail), x, slope.reshape(tail))


class Trainee:
    """A module and the graph that its bounds are computed on. The module's tensors are read live."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        """example: a batch of images; the network is traced on it when bounds are first asked for."""
        self.network = network
        self.example = example[:1].detach()
        self.norms = {name: part for name, part in network.named_modules() if isinstance(part, _BatchNorm)}

    @cached_property
    def traced(self) -> Graph:
        """The network as it is traced, in evaluation mode; raises what `trace` does."""
        with evaluating(self.network):
            return prepare(trace(self.network, self.example))

    @cached_property
    def settled(self) -> tuple[Graph, tuple[str, ...]]:
        """The same with masked weights as parameters, and the names of those."""
        return settled(self.traced)

    @property
    def source(self) -> Graph:
        """The network that norms are folded in."""
        return self.settled[0]

    @cached_property
    def rewritten(self) -> tuple[Graph, tuple[Fold, ...]]:
        """The graph that is bounded, and the norms that went into its weights."""
        return fold_norms(self.source)

    @property
    def graph(self) -> Graph:
        """The graph that is bounded."""
        return self.rewritten[0]

    @property
    def plan(self) -> Plan:
        """How the graph is bounded over its input."""
        return plan(self.graph, (self.graph.input.name,))

    @cached_property
    def scales(self) -> Mapping[str, str]:
        """By activation: the parameter that scales the norm it reads, where it reads one."""
        found = {fold.made[0].removesuffix(".folded_weight"): fold.scale for fold in self.rewritten[1]}
        found |= {node.name: node.inputs[1] for node in self.graph if node.op == "batch_norm"}
        readers = ((step.site.node.name, step.site.node.inputs[0]) for step in self.plan.relaxed)
        return {name: found[read] for name, read in readers if read in found}

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """Running means that several places of the network read, being one norm."""
        means = Counter(node.inputs[3] for node in self.source if node.op == "batch_norm")
        return tuple(name for name, places in means.items() if places > 1)

    def values(self, moments: Moments, fixed: Iterable[str] = ()) -> dict[str, Tensor]:
        """The tensors of the graph's parameters, differentiable in the module's but for those named in `fixed`.

        moments {} for running statistics. Raises UsageError for moments of a norm that stands in several places.
        """
        if moments and self.shared:
            raise UsageError(
                f"the norm of '{self.shared[0]}' stands in several places of the network, so a batch has no one mean "
                "for it; give each place a norm of its own"
            )
        values = {**self.traced.values(next(self.network.parameters()).dtype), **moments}
        values |= evaluate(self.traced, values, {}, self.settled[1])
        values.update({name: values[name].detach() for name in fixed})
        for fold in self.rewritten[1]:
            values.update(fold.folded(values))
        return values

    def forward(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Logits [B, K] in the mode the network is in, and what every norm in training mode was given, by name."""
        given: dict[str, Tensor] = {}

        def noting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def note(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                given[name] = inputs[0]

            return note

        hooks = [part.register_forward_pre_hook(noting(name)) for name, part in self.norms.items() if part.training]
        try:
            return self.network(x), given
        finally:
            for hook in hooks:
                hook.remove()


def moments_of(given: Mapping[str, Tensor]) -> Moments:
    """Mean and variance of what norms were given, by the names of the buffers that they stand in for."""
    moments: dict[str, Tensor] = {}
    for name, x in given.items():
        found = MeanAndVariance.apply(x)
        moments[f"{name}.running_mean"], moments[f"{name}.running_var"] = found  # pyright: ignore[reportGeneralTypeIssues]
    return moments
