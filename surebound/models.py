"""Opening a model by what a user calls it: an ONNX file, a run folder, or a factory with its weights."""

from __future__ import annotations

import hashlib
import importlib
import sys
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from surebound.errors import ModelError
from surebound.graph.ir import Graph
from surebound.graph.torch_export import trace
from surebound.instance import load_network
from surebound.runs import load_network as load_run
from surebound.sweeps.instances import onnx_sha256


def load_model(model: str, weights: Path | None, example: Tensor) -> tuple[Graph, str]:
    """The graph of an ONNX file, a run folder or `package.module:factory`, and the sha256 of what it was read from.

    weights: the tensors of a factory's network, safetensors or a torch file of tensors alone. example: one input, for
    tracing. Raises ModelError for what cannot be read or built.
    """
    path = Path(model)
    module, colon, name = model.partition(":")
    if not colon or path.exists():
        if weights is not None:
            raise ModelError("--weights goes with a factory; an ONNX file and a run folder have their own")
        if path.is_dir():
            return trace(load_run(path), example), sha256(path / "model.safetensors")
        return load_network(path), onnx_sha256(model)
    if weights is None:
        raise ModelError(f"{model} builds a network without its weights; give their file with --weights")
    network = built(module, name)
    try:
        network.load_state_dict(tensors(weights))
    except RuntimeError as error:
        raise ModelError(f"{weights} does not fit the network of {model}: {error}") from None
    return trace(network.eval(), example), sha256(weights)


def built(module: str, name: str) -> nn.Module:
    """A network from a factory that takes no arguments; modules are looked for here too."""
    sys.path.insert(0, "")
    try:
        network = getattr(importlib.import_module(module), name)()
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise ModelError(f"cannot build a network with {module}:{name}: {type(error).__name__}: {error}") from error
    finally:
        with suppress(ValueError):
            sys.path.remove("")
    if not isinstance(network, nn.Module):
        raise ModelError(f"{module}:{name} returns a {type(network).__name__}, not a torch module")
    return network


def tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a safetensors or torch file; nothing else in it is read."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise ModelError(f"the weights in {path} cannot be read: {error}") from None
    except Exception as error:  # the unpickler's own error has no public class
        raise ModelError(f"{path} holds more than tensors and is not read: {error}") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path} holds no tensors by name; save the network's state_dict()")
    return found


def sha256(path: Path) -> str:
    """Of a file; ModelError when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
