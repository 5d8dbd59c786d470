"""Running the user's code, itself and through torch.export with a symbolic batch size; where in it things happen."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, default_decompositions, export

from surebound.errors import ModelError, SureboundError
from surebound.graph.module_original import ModuleOriginal

INTERNAL = (f"{torch.__path__[0]}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}", "<")
"""Beginnings of file names that are not the user's."""

FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def user_lines(places: list[tuple[str, str]]) -> list[str]:
    """'model.py:12' for those of the (file, line) pairs that are the user's code."""
    return [f"{Path(file).name}:{line}" for file, line in places if not file.startswith(INTERNAL)]


def origin(node: fx.Node, root: str) -> str:
    """'layer1.conv (model.py:12)': the module path and the deepest line of the user's code, as far as known."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    path = path if path and not path.startswith("_") else root
    lines = user_lines(FRAME.findall(node.meta.get("stack_trace") or ""))
    return f"{path} ({lines[-1]})" if lines else path


def raised_at(error: BaseException) -> str:
    """' at FILE:LINE' of the user's code that raised, from the exporter's text or the traceback; '' if unknown."""
    places = FRAME.findall(str(error))
    if not places:
        frames = [(frame.filename, str(frame.lineno)) for frame in traceback.extract_tb(error.__traceback__)]
        entered = next((i for i, (file, _) in enumerate(frames) if file.startswith(INTERNAL)), len(frames))
        places = [place for place in frames[entered:] if "site-packages" not in place[0]]
    lines = user_lines(places)
    return f" at {lines[-1]}" if lines else ""


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def explained(error: Exception) -> ModelError:
    """What an exporter's exception means for the user."""
    text, where = str(error), raised_at(error)
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return ModelError(
            f"the module's forward takes a decision on the values of its input{where}, so it isn't one network "
            f"({first_line(error)}). Write the decision with torch.where, relu or maximum instead of if"
        )
    if "Constraints violated" in text or "specialized" in text:
        detail = next((line.strip(" -") for line in text.splitlines() if line.strip().startswith("- ")), "")
        return ModelError(
            f"the module's forward depends on the batch size{where}: {detail or first_line(error)}. "
            "Write it so that any number of samples works (x.shape[0] or -1 instead of a fixed number)"
        )
    return ModelError(
        f"torch.export could not capture the module{where}: {first_line(error)}. The forward must consist of torch "
        "operations on its input and work for any batch size, without NumPy and without decisions on values"
    )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the exporter's warnings, logs and printed graphs from the user; what matters is in its exception."""
    before = logging.root.manager.disable
    sink = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def run_once(original: ModuleOriginal, batch: Tensor) -> Tensor:
    """The module's outputs on a batch; raises ModelError if it can't compute them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return original(batch)
    except SureboundError:
        raise
    except Exception as error:
        raise ModelError(
            f"the module fails on an example of shape {list(batch.shape)}{raised_at(error)}: {first_line(error)}"
        ) from error


def exported(module: nn.Module, batch: Tensor, known: Callable[[str], bool]) -> ExportedProgram:
    """The captured module: functional, with convolutions, linear layers and the like kept whole.

    Operations on the input that aren't known are replaced by torch's own definitions of them, where it has any.
    """
    try:
        with silence(), torch.no_grad():
            program = export(module, (batch,), dynamic_shapes=({0: Dim("batch")},), strict=False)
            program = program.run_decompositions({})
            tried: set[Any] = set()
            while unknown := {op for op in operations_on_input(program) if not known(str(op))} - tried:
                tried |= unknown
                table = {op: rule for op, rule in default_decompositions().items() if op in unknown}
                program = program.run_decompositions(table) if table else program
            return program
    except Exception as error:
        raise explained(error) from error


def operations_on_input(program: ExportedProgram) -> set[Any]:
    """The operations that make tensors from the network's input."""
    users = set(program.graph_signature.user_inputs)
    reached = {node for node in program.graph.nodes if node.op == "placeholder" and node.name in users}
    for node in program.graph.nodes:
        if isinstance(node.meta.get("val"), (Tensor, list, tuple)) and not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return {node.target for node in reached if node.op == "call_function"}
