"""Compression of a run folder's network or an ONNX file into a run folder."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from surebound.errors import ModelError
from surebound.graph.ir import Graph
from surebound.graph.onnx_import import load_onnx
from surebound.graph.torch_export import trace
from surebound.loop.dense import require_other
from surebound.models import sha256
from surebound.nets.from_graph import described, module_of
from surebound.runs import Recipe, RunFolder, load_network
from surebound.same_settings import RECIPE, same_settings
from surebound.sparsify.compress.run import Compressed, compress
from surebound.sparsify.layers import LAYERS
from surebound.sparsify.mask_file import MaskFile, mask_name
from surebound.sparsify.sites import Masks

FACTORY = "surebound.nets.from_graph:graph_net"


def graph_of(model: Path) -> Graph:
    """The network of a run folder or an ONNX file."""
    if not model.is_dir():
        return load_onnx(model)
    onnx = model / "model.onnx"
    if not onnx.exists():
        raise ModelError(f"{onnx} is missing; is {model} a run folder?")
    network = load_network(model)
    shape = load_onnx(onnx).input.shape
    return trace(network, torch.zeros(1, *(shape[1:] if len(shape) == 4 else shape)))


def compress_model(model: Path, out: Path, lower: float = 0.0, upper: float = 1.0) -> Compressed:
    """Write the smaller network into the folder `out`: model.onnx, model.safetensors with model.json, summary.json.

    Outputs stay equal for inputs in [lower, upper]. The recipe of a run goes along, and so do the zeros of a pruned
    one, so that the smaller network can be pruned and grafted further. Raises UsageError, ModelError, TraceMismatch.
    """
    require_other(out, model)
    found = compress(graph_of(model), lower, upper)
    digest = sha256(model / "model.safetensors" if model.is_dir() else model)
    told = {"command": "compress", "digest": digest, "domain": [lower, upper]}
    folder = same_settings(out, told, begun=False)
    save_small(folder, found.graph, (model / mask_name("kept")).exists())
    if model.is_dir() and (model / RECIPE).exists():
        shutil.copyfile(model / RECIPE, out / RECIPE)
    folder.write_summary({**told, "model": str(model), "steps": [asdict(step) for step in found.steps]})
    return found


def save_small(folder: RunFolder, graph: Graph, pruned: bool) -> None:
    """Write a compressed network into a run folder; pruned: its zeros are those of pruned weights and are to stay."""
    network = module_of(graph)
    folder.save_network(network, Recipe(FACTORY, described(graph)))
    graph.to_onnx(str(folder.path / "model.onnx"))
    path, masks = folder.path / mask_name("kept"), zeros_of(network)
    if pruned and masks:
        MaskFile(masks, "kept", {"compressed": True}).write(path)
    else:
        path.unlink(missing_ok=True)


def zeros_of(network: nn.Module) -> Masks:
    """Masks of the layers that have zeros: of weights, and of the biases of channels without any weight."""
    found: dict[str, Tensor] = {}
    for name, part in network.named_modules():
        if isinstance(part, LAYERS["all"]):
            weight, bias = part.get_parameter("weight") != 0, part.bias
            if not bool(weight.all()):
                found[f"{name}.weight"] = weight
                if isinstance(bias, Tensor):
                    found[f"{name}.bias"] = weight.flatten(1).any(1) | (bias != 0)
    return found
