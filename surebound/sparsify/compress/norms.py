"""Batch norms go into the layers before them: W -> s W, b -> s (b - mean) + shift, s = scale / sqrt(var + eps)."""

from __future__ import annotations

from dataclasses import replace

import torch

from surebound.graph.ir import Graph, Node
from surebound.sparsify.compress.frozen import Frozen, Making, weight_and_bias


def fold_norms(net: Frozen) -> Frozen:
    """Norms that follow a layer which nothing else reads; the layer takes the norm's name."""
    making = Making(net)
    norms = {node.name: layer for node in net.graph if (layer := layer_before(net.graph, node)) is not None}
    gone = {layer.name for layer in norms.values()}
    for node in net.graph:
        if node.name in gone:
            continue
        if node.name not in norms:
            making.nodes.append(node)
            continue
        layer = norms[node.name]
        scale, shift, mean, var = (net.tensors[name] for name in node.inputs[1:])
        factor = scale / torch.sqrt(var + node.attrs["eps"])
        weight, bias = weight_and_bias(net, layer)
        wide = making.put(f"{node.name}.weight", weight * factor.reshape(-1, *[1] * (weight.dim() - 1)))
        made = (layer.inputs[0], wide, making.put(f"{node.name}.bias", (bias - mean) * factor + shift))
        making.nodes.append(replace(layer, name=node.name, inputs=made))
    return making.done()


def layer_before(graph: Graph, norm: Node) -> Node | None:
    """The convolution or linear layer that a norm completes, whose channels are the norm's."""
    if norm.op != "batch_norm":
        return None
    layer = graph[norm.inputs[0]]
    alone = graph.consumers[layer.name] == (norm.name,) and layer.name not in graph.outputs
    flat = layer.op == "linear" and len(layer.shape) == 1
    return layer if alone and (layer.op == "conv2d" or flat) else None
