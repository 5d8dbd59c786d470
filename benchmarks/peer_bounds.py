"""The peer's side of `bounds.py`: bounds by auto_LiRPA, and the measuring that both sides share.

Runs under an interpreter of its own with torch, numpy, onnx and auto_LiRPA; nothing of surebound is needed.
The first line on standard input is a case (JSON), every further line asks for one measured run; each run
is answered by one line. What a case holds is said at `Case`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

Trial = Callable[[], Callable[[], Tensor]]
"""Makes one run ready; what it returns is the part that is timed, its result the lower bounds."""


class Case(TypedDict):
    """What is measured: `onnx` and `data` are paths, method is ibp, crown, kept, optimised or search.

    pruned: does the peer forget the alphas of layers whose boxes are kept? Its verifier does, its own call does not.
    data: NAME.npz with images, boxes and labels; for search the sub-problems that `bounds.py` wrote:
    input box `xl`, `xu`, `row`, and boxes `low0`, `high0`, ... before each relaxed layer in order.
    """

    onnx: str
    data: str
    method: str
    batch: int
    steps: int
    threads: int
    pruned: bool


def margins(labels: np.ndarray, classes: int) -> Tensor:
    """Rows e_label - e_k for every other class k in ascending order, [B, classes - 1, classes]."""
    eye = torch.eye(classes)
    return torch.stack([(eye[y] - eye)[torch.arange(classes) != y] for y in labels.tolist()])


def settle() -> None:
    """Use once what torch imports or allocates on first use, so that no method is charged for it."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.zeros(1, 1, 8, 8)).sum().backward()
    optimiser.step()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak() -> float:
    """The most memory this process has held at once, in MB; NaN where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return float("nan")


def measured(run: Callable[[], Tensor]) -> dict[str, float]:
    """One run: milliseconds, mean bound, and by how many MB the peak of memory rose above the level before."""
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    level, began = peak(), time.perf_counter()
    lower = run()
    seconds = time.perf_counter() - began
    return {"ms": seconds * 1e3, "mean": float(lower.double().mean()), "mb": peak() - level}


def serve(make: Callable[[Case], Trial]) -> None:
    """Answer the requests on standard input, a failure with its words; other prints go to standard error."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        try:
            case: Case = json.loads(sys.stdin.readline())
            torch.set_num_threads(case["threads"])
            trial = make(case)
            for number, _ in enumerate(sys.stdin):
                run = trial()
                if number == 0:
                    settle()
                answers.write(json.dumps(measured(run)) + "\n")
        except Exception as error:
            answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            raise


def layer(op: str, attrs: dict[str, Any], given: list[Tensor]) -> nn.Module:
    """The module of one ONNX node with tensors `given` behind its first operand."""
    if op == "Relu":
        return nn.ReLU()
    if op == "Flatten":
        return nn.Flatten()
    weight, bias = given
    if op == "Conv":
        out, into, *kernel = weight.shape
        made = nn.Conv2d(into, out, (kernel[0], kernel[1]), tuple(attrs["strides"]), tuple(attrs["pads"][:2]))
    elif op == "Gemm" and attrs.get("transB") == 1:
        made = nn.Linear(weight.shape[1], weight.shape[0])
    else:
        raise NotImplementedError(f"no conversion for {op} {attrs}")
    made.weight, made.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
    return made


def network(path: str) -> tuple[nn.Sequential, Tensor, Tensor]:
    """An ONNX chain as modules, and the shift and scale of the normalisation (x - shift) / scale in front.

    The normalisation is applied to the box: the peer's rules for constants refuse some batches of
    convolutional rows, and this way the peer has a little less to do.
    """
    graph = onnx.load(path).graph
    tensors = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    shift, scale, layers, name = torch.zeros(()), torch.ones(()), list[nn.Module](), graph.input[0].name
    for node in graph.node:
        if node.input[0] != name:
            raise NotImplementedError(f"{path} is not a chain at {node.name}")
        name, given = node.output[0], [tensors[name] for name in node.input[1:]]
        attrs = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Sub" and not layers:
            shift = given[0]
        elif node.op_type == "Div" and not layers:
            scale = given[0]
        else:
            layers.append(layer(node.op_type, attrs, given))
    return nn.Sequential(*layers).eval(), shift, scale


class Peer:
    """auto_LiRPA on one case: patches mode, default options, lower bounds only, Adam with rate 0.1.

    The number of steps is its `iteration`: so many bounds, and one update less. No early stop.
    """

    def __init__(self, case: Case) -> None:
        from auto_LiRPA import BoundedModule, BoundedTensor  # pyright: ignore[reportMissingImports]
        from auto_LiRPA.perturbations import PerturbationLpNorm  # pyright: ignore[reportMissingImports]

        net, shift, scale = network(case["onnx"])
        data = np.load(case["data"])
        self.method, count = case["method"], case["batch"]
        if self.method == "search":
            low, high = (torch.from_numpy(data[key]).unsqueeze(0).expand(count, -1, -1, -1) for key in ("xl", "xu"))
            self.rows = torch.from_numpy(data["row"]).expand(count, 1, -1)
        else:
            low, high = (torch.from_numpy(data[key][:count]) for key in ("xl", "xu"))
            self.rows = margins(data["y"][:count], data["logits"].shape[1])
            off = (net((torch.from_numpy(data["x"]) - shift) / scale) - torch.from_numpy(data["logits"])).abs().max()
            if off > 1e-4:
                raise ValueError(f"the converted network is off by {off:.2g}")
        low, high = (low - shift) / scale, (high - shift) / scale
        options = {
            "iteration": case["steps"],
            "lr_alpha": 0.1,
            "early_stop_patience": case["steps"] + 1,
            "fix_interm_bounds": self.method != "optimised",
            "init_alpha": self.method == "optimised",
        }
        self.net: Any = BoundedModule(
            net, torch.zeros_like(low[:1]), bound_opts={"conv_mode": "patches", "optimize_bound_args": options}
        )
        self.net.eval()
        self.net.requires_grad_(False)
        self.x = BoundedTensor((low + high) / 2, PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high))
        self.pruned = case["pruned"]
        self.known: dict[str, tuple[Tensor, Tensor]] | None = None
        if self.method == "search":
            before = [node.inputs[0] for node in self.net.nodes() if type(node).__name__ == "BoundRelu"]
            self.known = {
                node.name: (
                    torch.from_numpy(data[f"low{k}"]).reshape(count, *node.output_shape[1:]),
                    torch.from_numpy(data[f"high{k}"]).reshape(count, *node.output_shape[1:]),
                )
                for k, node in enumerate(before)
            }

    def bound(self, method: str, known: dict[str, tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Lower bounds [B, S] by one of the peer's methods."""
        return self.net.compute_bounds((self.x,), C=self.rows, method=method, bound_upper=False, interm_bounds=known)[0]

    def start(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Set alphas to CROWN's choice, if pruned only for rows over the output.

        Returns boxes before the relaxed layers, by CROWN if not known.
        """
        boxes = self.net.init_alpha(
            (self.x,), c=self.rows, bound_upper=False, interm_bounds=self.known if self.pruned else None
        )[2]
        if self.pruned:
            for node in self.net.get_enabled_opt_act():
                node.drop_unused_alpha([self.net.final_name])
        return boxes

    def trial(self) -> Callable[[], Tensor]:
        """The function that is timed."""
        if self.method == "search":
            self.start()
            return lambda: self.bound("CROWN-optimized", self.known)
        if self.method == "kept":
            return lambda: self.bound("CROWN-optimized", self.start())
        if self.method == "optimised":
            return lambda: self.bound("CROWN-optimized")
        return torch.no_grad()(lambda: self.bound({"ibp": "IBP", "crown": "CROWN"}[self.method]))


if __name__ == "__main__":
    serve(lambda case: Peer(case).trial)
