"""The PyTorch frontend: what it maps, what it keeps live, what it refuses and in which words."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

from surebound.errors import ModelError, ParametersChanged, TraceMismatch, UnsupportedOp, UsageError
from surebound.graph.ir import evaluate
from surebound.graph.torch_export import trace
from surebound.ops import OPS
from surebound.ops.record import Interval, Op, never
from surebound.properties import robust
from surebound.search.verify import verify


def run(graph, x):
    """Outputs of the graph with the module's present parameters."""
    return evaluate(graph, graph.values(x.dtype), x)[graph.output.name]


def noise(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def computed_ops(graph):
    return [node.op for node in graph if node.op not in ("input", "parameter")]


def agree(graph, module, *shape, dtype=torch.float32):
    """Graph and module agree on batches of 1 and 5 to rounding."""
    for count in (1, 5):
        x = noise(count, *shape, dtype=dtype, seed=count)
        with torch.no_grad():
            torch.testing.assert_close(run(graph, x), module(x), rtol=1e-5, atol=1e-5)


class Made(nn.Module):
    """A module whose forward is the given function of (module, x); it holds a few tensors to compute with."""

    def __init__(self, function, size=4):
        super().__init__()
        self.function = function
        self.w = nn.Parameter(noise(size, size, seed=3))
        self.lin = nn.Linear(size, size)
        self.register_buffer("shift", noise(size, seed=4))
        self.register_buffer("mask", torch.arange(size) % 2 == 0)
        self.register_buffer("order", torch.arange(size).flip(0), persistent=False)

    def forward(self, x):
        return self.function(self, x)


HERE = f"Made (test_trace.py:{inspect.getsourcelines(Made.forward)[1] + 1})"
"""How messages name an operation of `Made`: the deepest line of a method called forward."""


def made(function, **kwargs):
    return Made(function, **kwargs).eval()


def line_of(function, offset=0):
    """'test_trace.py:N' of a function's first line plus offset."""
    return f"test_trace.py:{inspect.getsourcelines(function)[1] + offset}"


class ConvNet(nn.Module):
    """Convolution, batch norm, in-place ReLU, dropout and max pooling, as people write them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x):
        x = self.pool(self.relu(self.bn(self.conv(x))))
        return self.fc(self.drop(x.view(x.size(0), -1)))


class Residual(nn.Module):
    """A strided block with a projected shortcut, then the global average."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, 1, 1, groups=2)
        self.short = nn.Conv2d(2, 4, 1, 2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x):
        y = self.b(F.relu(self.bn(self.a(x))))
        y += self.short(x)
        return self.head(F.relu(y))


def spread_statistics(module):
    """Give every batch norm moments and weights that are not the initial ones."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(noise(part.num_features, seed=1))
            part.running_var.copy_(noise(part.num_features, seed=2).abs() + 0.3)
            part.weight.data.copy_(noise(part.num_features, seed=5))
    return module.eval()


# --- whole networks


def test_mlp_has_one_node_per_layer():
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    graph = trace(module, noise(7, 3, 4))
    assert computed_ops(graph) == ["reshape", "linear", "relu", "linear"]
    assert graph.input.shape == (3, 4) and graph.output.shape == (3,)
    assert graph["linear"].inputs[1:] == ("1.weight", "1.bias")
    assert graph["linear_1"].origin.startswith("3")
    agree(graph, module, 3, 4)


def test_convnet_from_an_example_of_one_sample():
    module = spread_statistics(ConvNet())
    graph = trace(module, noise(1, 1, 6, 6))
    assert computed_ops(graph) == ["conv2d", "batch_norm", "relu", "max_pool2d", "reshape", "linear"]
    assert graph["batch_norm"].inputs[1:] == ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    assert graph["conv2d"].attrs["padding"] == (1, 1)
    line = line_of(ConvNet.forward, 1)
    assert graph["conv2d"].origin == f"conv ({line})"
    agree(graph, module, 1, 6, 6)


def test_residual_network():
    module = spread_statistics(Residual())
    graph = trace(module, noise(2, 2, 8, 8))
    assert computed_ops(graph).count("conv2d") == 3 and "mean" in computed_ops(graph)
    agree(graph, module, 2, 8, 8)


def test_parameters_and_buffers_stay_in_their_own_dtype_and_constants_follow():
    module = nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU(0.1)).double().eval()
    graph = trace(module, noise(2, 3))
    assert graph.original.dtype == torch.float64
    assert graph.parameters()["0.weight"].dtype == torch.float64
    agree(graph, module, 3, dtype=torch.float64)


def test_original_is_the_module_itself():
    module = spread_statistics(ConvNet())
    graph = trace(module, noise(2, 1, 6, 6))
    x = noise(3, 1, 6, 6, dtype=torch.float64)
    out = graph.original(x)
    assert torch.equal(out, module(x.float()).detach()) and not out.requires_grad
    module.train()
    with pytest.raises(UsageError, match=r"call \.eval\(\)"):
        graph.original(x)


def test_original_leaves_the_callers_tensor_alone():
    module = made(lambda m, x: x.relu_() * 2)
    graph = trace(module, noise(2, 4))
    x = noise(2, 4)
    before = x.clone()
    graph.original(x)
    assert torch.equal(x, before)
    agree(graph, lambda x: x.relu() * 2, 4)


# --- operations

VECTOR_OPS = {
    "products": lambda m, x: x @ m.w + torch.addmm(m.shift, x, m.w, alpha=2, beta=3) + torch.mm(x, m.w.t()),
    "batched products": lambda m, x: torch.bmm(x[:, :, None], x[:, None]).sum(-1) + (m.w @ x[:, :, None])[..., 0],
    "vector products": lambda m, x: (x @ m.shift)[:, None] + m.shift @ x[:, :, None],
    "one row": lambda m, x: F.linear(x[:, None] * m.w, m.shift) + F.linear(x, m.w[0])[:, None],
    "scalars": lambda m, x: 2 - x + (x - 3) * 2 / 4 + torch.rsub(x, 1.0, alpha=3) + torch.add(x, m.shift, alpha=2),
    "powers": lambda m, x: x**2 + x.square() - x.pow(3) + 1 / (x * x + 1),
    "corners": lambda m, x: abs(x) + torch.maximum(x, m.shift) + torch.min(x, m.w[0]),
    "clamps": lambda m, x: x.clamp(-1, 1) + x.clamp_min(0.5) + x.clamp(max=1) + x.clamp(m.shift, m.shift + 1),
    "steps": lambda m, x: F.relu6(x) + F.hardtanh(x, -2, 2) + F.hardsigmoid(x) + F.hardswish(x) + F.leaky_relu(x, 0.2),
    "thresholds": lambda m, x: F.threshold(x, 0.5, 0.5) + F.threshold(x, 0, 0),
    "jumps": lambda m, x: x.sign() + (2 * x).floor() + (3 * x).ceil() + torch.round(4 * x),
    "elus": lambda m, x: F.elu(x, 0.6) + F.selu(x) + F.celu(x, 0.7) + x.atan(),
    "log softmax": lambda m, x: F.log_softmax(x, 1) + x.log_softmax(-1) + x.amax(1, True),
    "curves": lambda m, x: torch.sigmoid(x) + x.tanh() + F.silu(x),
    "broadcasts": lambda m, x: x[:, None] + m.w + x[:, :, None] * m.w[None] + m.w[:1],
    "expanded": lambda m, x: (
        x[:, None] + m.w.expand(x.shape[0], 4, 4) + torch.zeros(x.shape[0], 1, 4) + torch.arange(4.0)
    ),
    "likes": lambda m, x: x + torch.ones_like(x) * 2 + x.new_full((x.shape[0], 1), 3.0) + torch.full_like(x, 0.5),
    "joins": lambda m, x: torch.cat([x, m.shift.expand(x.shape[0], -1)], 1) + torch.stack([x, -x], 1).flatten(1),
    "parts": lambda m, x: x.split(2, 1)[1] + x.chunk(2, -1)[0] + x[:, 1::2] + x[:, -3:-1] + x.unbind(1)[2][:, None],
    "sizes": lambda m, x: torch.cat(x.split([1, 3], 1)[::-1], 1) + x.narrow(1, 1, 2).repeat(1, 2),
    "indices": lambda m, x: x[:, m.order] + x.index_select(1, m.order) + x[:, [0, 2, 1, 1]] + x.flip(1) + x.roll(1, 1),
    "masks": lambda m, x: x * m.mask + torch.where(m.mask[None], x, -x) + x.masked_fill(m.mask, 2.0) + x * (m.w > 0)[0],
    "expanded masks": lambda m, x: torch.cat([x, m.mask.expand(x.shape[0], 4)], 1) + torch.where(m.mask[0], 1.0, 2.0),
    "shapes": lambda m, x: (
        x.unflatten(1, (2, 2)).permute(0, 2, 1).transpose(1, 2).unsqueeze(1).squeeze(1).reshape(-1, 4)
    ),
    "means": lambda m, x: (
        x.mean(1, keepdim=True) + x[:, None].sum((1, 2))[:, None] + x.view(x.shape[0], 2, 2).mean(-1).sum(1, True)
    ),
    "paddings": lambda m, x: F.pad(x, (2, -1))[:, 1:] + F.pad(x[:, None], (1, 1), mode="reflect")[:, 0, 2:],
    "wrapped": lambda m, x: F.pad(x[:, None], (2, 2), mode="circular")[:, 0, 4:] + F.pad(x, (1, 0), value=3.0)[:, :1],
    "gradients": lambda m, x: x.detach() + x.clone().contiguous().double().float(),
    "loop": lambda m, x: m.lin(m.lin(m.lin(x).relu()).relu()),
}


@pytest.mark.parametrize("name", VECTOR_OPS)
def test_operations_on_vectors(name):
    module = made(VECTOR_OPS[name])
    agree(trace(module, noise(1, 4)), module, 4)


def slice_assignment(m, x):
    y = x.clone()
    y[:, 1] = 3
    y[:, 2:] *= 2
    z = torch.zeros_like(x)
    z[:, 1:3] = y[:, :2]
    e = torch.empty(x.shape[0], 4)
    e.copy_(y)
    e[:, 0].fill_(1.0)
    z += e
    e[:] = m.shift
    return z + y + e


def test_slice_assignment_is_functionalised():
    module = made(slice_assignment)
    agree(trace(module, noise(2, 4)), module, 4)


@pytest.mark.parametrize("function", [lambda m, x: x.clamp(1, -1), lambda m, x: F.threshold(x, 2, 2).clamp(5, max=-1)])
def test_crossed_limits_of_a_clamp_are_its_upper_limit(function):
    """torch's clamp is min(max(x, low), high): with low > high it is high everywhere."""
    module = made(function)
    graph = trace(module, noise(2, 4))
    clip = graph.output
    assert (clip.op, clip.attrs["min"], clip.attrs["max"]) == ("clip", -1.0, -1.0)
    agree(graph, module, 4)


def test_a_limit_of_a_clamp_that_is_nan_is_refused():
    with pytest.raises(UnsupportedOp, match="a limit is NaN"):
        trace(made(lambda m, x: x.clamp(min=float("nan"))), noise(2, 4))


class Images(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.same = nn.Conv2d(3, 4, 4, padding="same", dilation=2)
        self.edge = nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate", stride=(1, 2))
        self.line = nn.Conv1d(3, 2, 4, padding="same")
        self.jump = nn.Conv1d(3, 3, 3, stride=2, padding=2, groups=3, bias=False)
        self.slope = nn.PReLU(3)
        self.bn = nn.BatchNorm2d(3, affine=False)

    def forward(self, x):
        return self.function(self, x)


IMAGE_OPS = {
    "same padding": lambda m, x: m.same(x),
    "edge padding": lambda m, x: m.edge(x),
    "signals": lambda m, x: m.line(x[:, :, 0])[..., :5].flatten(1) + m.jump(x[:, :, 1]).flatten(1)[:, :10],
    "pools": lambda m, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True) + F.avg_pool2d(x, 3, 2, 1, True, False),
    "pools of signals": lambda m, x: (
        F.max_pool1d(x[:, 0], 2) + F.avg_pool1d(x[:, 0], 2) + F.adaptive_avg_pool1d(x[:, 1], 4)
    ),
    "pools without channels": lambda m, x: F.max_pool2d(x[:, 0], 2) + F.adaptive_max_pool2d(x[:, 1], 4),
    "pool with indices": lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0],
    "adaptive": lambda m, x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_avg_pool2d(x, (2, 4))[:, :, :1, :1],
    "slopes": lambda m, x: m.slope(x) + m.bn(x),
    "shuffled": lambda m, x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2).permute(0, 2, 3, 1).flatten(1, 2),
}


@pytest.mark.parametrize("name", IMAGE_OPS)
def test_operations_on_images(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        module = Images(IMAGE_OPS[name]).eval()
        agree(trace(module, noise(2, 3, 8, 8)), module, 3, 8, 8)


def test_a_graft_becomes_one_node():
    module = made(lambda m, x: torch.where(m.mask, x * m.shift + m.w[0], F.relu(x)))
    graph = trace(module, noise(2, 4))
    assert [node.op for node in graph if node.batched] == ["input", "graft"]
    agree(graph, module, 4)


def test_a_gate_becomes_one_node():
    def gate(m, x):
        line = x * m.shift + m.w[0]
        return line + m.shift.clamp(0, 1) * (F.relu(x) - line)

    graph = trace(made(gate), noise(2, 4))
    assert [node.op for node in graph if node.batched] == ["input", "gate"]
    agree(graph, made(gate), 4)


def test_what_mixes_two_lines_is_no_gate():
    def mixed(m, x):
        line, other = x * m.shift + m.w[0], x * m.shift + m.w[1]
        return line + m.shift * (F.relu(x) - other)

    graph = trace(made(mixed), noise(2, 4))
    assert "gate" not in [node.op for node in graph]
    agree(graph, made(mixed), 4)


def test_warnings_and_logs_stay_inside(capfd):
    def decide(m, x):
        return x if x.sum() > 0 else -x

    with pytest.raises(ModelError):
        trace(made(decide), noise(2, 4))
    assert capfd.readouterr() == ("", "")


def test_an_op_of_the_users_table_is_found_under_its_torch_name():
    def sinh(site, x):
        return torch.sinh(x)

    table = OPS | {"aten.sinh": Op(sinh, never, lambda site, x: Interval(torch.sinh(x.lower), torch.sinh(x.upper)))}
    module = made(lambda m, x: m.lin(x).sinh())
    graph = trace(module, noise(2, 4), ops=table)
    assert computed_ops(graph) == ["linear", "aten.sinh"]
    agree(graph, module, 4)


def test_a_missing_op_of_the_table_is_named():
    table = {name: op for name, op in OPS.items() if name != "relu"}
    with pytest.raises(UnsupportedOp, match="op table has no 'relu'"):
        trace(nn.Sequential(nn.ReLU()).eval(), noise(2, 4), ops=table)


# --- live parameters


def test_changed_and_reassigned_weights_are_seen():
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    graph = trace(module, noise(2, 3))
    before = run(graph, noise(4, 3))
    with torch.no_grad():
        module[0].weight.mul_(2)
    agree(graph, module, 3)
    module[2].weight = nn.Parameter(noise(2, 2, seed=9))
    agree(graph, module, 3)
    assert not torch.allclose(before, run(graph, noise(4, 3)))


def test_dtype_change_is_seen():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    graph = trace(module, noise(2, 3))
    module.double()
    assert graph.original.dtype == torch.float64
    agree(graph, module, 3, dtype=torch.float64)


def test_gradients_reach_the_modules_parameters():
    module = made(lambda m, x: F.linear(x, m.w * m.mask, m.w.norm(dim=0)))
    graph = trace(module, noise(2, 4))
    x = noise(3, 4)
    run(graph, x).sum().backward()
    from_graph, module.w.grad = module.w.grad, None
    module(x).sum().backward()
    torch.testing.assert_close(from_graph, module.w.grad)


@pytest.mark.parametrize("when", ["before", "after"])
def test_pruned_weights(when):
    module = nn.Sequential(nn.Linear(4, 3)).eval()
    if when == "before":
        prune.l1_unstructured(module[0], "weight", 0.5)
    graph = trace(module, noise(2, 4))
    if when == "after":
        prune.l1_unstructured(module[0], "weight", 0.5)
    with torch.no_grad():
        module[0].weight_orig.mul_(3)
    agree(graph, module, 4)
    assert ("mul" in computed_ops(graph)) == (when == "before")


class Scaled(nn.Module):
    def forward(self, x):
        return x * torch.arange(3.0)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("when", ["before", "after"])
def test_parametrised_weights(when):
    module = nn.Sequential(nn.Linear(4, 3)).eval()
    if when == "before":
        parametrize.register_parametrization(module[0], "weight", Doubled().eval())
    graph = trace(module, noise(2, 4))
    if when == "after":
        parametrize.register_parametrization(module[0], "weight", Doubled())
    with torch.no_grad():
        module[0].parametrizations.weight.original.mul_(3)
    agree(graph, module, 4)


def test_weight_and_spectral_norm_are_left_to_torch():
    wrap = nn.utils.parametrizations.weight_norm
    module = nn.Sequential(wrap(nn.Linear(4, 4)), nn.ReLU(), nn.utils.spectral_norm(nn.Linear(4, 3))).eval()
    graph = trace(module, noise(2, 4))
    with torch.no_grad():
        module[0].parametrizations.weight.original0.mul_(3)
        module[2].weight_orig.mul_(2)
    agree(graph, module, 4)
    module.double()
    agree(graph, module, 4, dtype=torch.float64)


def test_plain_tensor_attributes_are_live_too():
    module = made(lambda m, x: x * m.scale)
    module.scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
    graph = trace(module, noise(2, 4))
    module.scale = torch.tensor([4.0, 3.0, 2.0, 1.0])
    agree(graph, module, 4)


def test_parameters_survive_pickling():
    graph = trace(nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3)), Scaled()).eval(), noise(2, 4))
    assert graph.parameters.steps
    again = pickle.loads(pickle.dumps(graph.parameters))()
    for name, tensor in graph.parameters().items():
        assert torch.equal(tensor, again[name])


def test_missing_parameter():
    module = nn.Sequential(nn.Linear(4, 3)).eval()
    graph = trace(module, noise(2, 4))
    del module[0].bias
    with pytest.raises(ParametersChanged, match=r"no parameter or buffer '0\.bias' any more.*trace the module again"):
        graph.parameters()


def test_reshaped_parameter():
    module = nn.Sequential(nn.Linear(4, 3)).eval()
    graph = trace(module, noise(2, 4))
    module[0].weight = nn.Parameter(torch.zeros(5, 4))
    with pytest.raises(ParametersChanged, match=r"'0\.weight' has shape \[5, 4\] now and had \[3, 4\]"):
        graph.parameters()


def test_indices_built_into_the_graph_must_stay():
    module = made(lambda m, x: x[:, m.order])
    graph = trace(module, noise(2, 4))
    graph.parameters()
    module.order = torch.tensor([0, 1, 2, 3])
    with pytest.raises(ParametersChanged, match="'order' are indices.*trace the module again"):
        graph.parameters()


def test_untied_weights():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    module[1].weight = module[0].weight
    graph = trace(module, noise(2, 4))
    with torch.no_grad():
        module[1].weight.mul_(2)
    agree(graph, module, 4)
    module[1].weight = nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(ParametersChanged, match="were one tensor"):
        graph.parameters()


def test_tracing_leaves_the_module_alone():
    module = spread_statistics(ConvNet())
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    trace(module, noise(2, 1, 6, 6))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module.training


# --- refusals


def test_training_mode_is_refused():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval()
    module[1].train()
    with pytest.raises(UsageError, match=r"training mode \(1\): call \.eval\(\)"):
        trace(module, noise(2, 4))
    assert module[1].training


@pytest.mark.parametrize("example", [torch.zeros(0, 4), torch.tensor(1.0), torch.zeros(2, 4, dtype=torch.long), [1.0]])
def test_unusable_examples(example):
    with pytest.raises(UsageError, match="the example must"):
        trace(made(lambda m, x: x), example)


def test_wrong_example_shape_names_shape_and_line():
    module = made(lambda m, x: x @ m.w)
    with pytest.raises(ModelError, match=rf"fails on an example of shape \[2, 3\] at {line_of(module.function)}"):
        trace(module, noise(1, 3))


@pytest.mark.parametrize("value, word", [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_nan_and_infinity_in_parameters(value, word):
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    module[1].running_mean[1] = value
    with pytest.raises(ModelError, match=rf"'1\.running_mean' contains {word}"):
        trace(module, noise(2, 4))


@pytest.mark.parametrize(
    "function, op",
    [
        (lambda m, x: torch.sinh(x), "aten.sinh.default"),
        (lambda m, x: torch.cosh(m.lin(x)), "aten.cosh.default"),
        (lambda m, x: x.cumsum(1), "aten.cumsum.default"),
    ],
)
def test_unknown_op_names_op_line_and_help(function, op):
    with pytest.raises(UnsupportedOp) as caught:
        trace(made(function), noise(2, 4))
    assert caught.value.op == op
    assert HERE in str(caught.value)
    assert "no rule" in str(caught.value) and "docs/add-an-op.md" in str(caught.value)


MIXING = {
    "view": (lambda m, x: x.reshape(-1, 2).relu().reshape(-1, 4), r"\[B, 4\] -> \[2\*B, 2\]"),
    "transpose": (lambda m, x: x.T.relu().T, r"\[B, 4\] -> \[4, B\]"),
    "mean of samples": (lambda m, x: x - x.mean(0), r"\[B, 4\] -> \[4\]"),
    "mean of everything": (lambda m, x: x - x.mean(), r"\[B, 4\] -> \[\]"),
    "concatenation": (lambda m, x: torch.cat([x, x]), r"\[B, 4\] -> \[2\*B, 4\]"),
    "first sample": (lambda m, x: x + x[0], r"\[B, 4\] -> \[4\]"),
    "flip": (lambda m, x: x.flip(0), "axis 0"),
    "differences": (lambda m, x: (x[:, None] - x[None]).sum(1), r"\[B, 4\] -> \[1, B, 4\]"),
    "own statistics": (lambda m, x: F.batch_norm(x, None, None, training=True), "statistics of the batch"),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_samples_names_line_and_shapes(name):
    function, detail = MIXING[name]
    with pytest.raises(UnsupportedOp, match=f"mixes the batch axis.*{detail}") as caught:
        trace(made(function), noise(2, 4))
    assert HERE in str(caught.value)


def test_attention_is_refused_with_its_module():
    module = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    with pytest.raises(UnsupportedOp, match=r"\(self_attn\) .* mixes the batch axis"):
        trace(module, noise(2, 3, 4))


class Recurrent(nn.Module):
    """The last hidden state of a sequence, by a layer or by a cell in a loop."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        if isinstance(self.layer, nn.LSTM):
            return self.layer(x)[0][:, -1]
        state = self.layer(x[:, 0])
        for t in range(1, x.shape[1]):
            state = self.layer(x[:, t], state)
        return state[0]


def test_recurrent_layers_are_refused_and_cells_are_not():
    with pytest.raises(UnsupportedOp, match=r"aten\.lstm\.input.*write the loop with a cell"):
        trace(Recurrent(nn.LSTM(4, 2, batch_first=True)).eval(), noise(1, 3, 4))
    module = Recurrent(nn.LSTMCell(4, 2)).eval()
    agree(trace(module, noise(1, 3, 4)), module, 3, 4)


def decide_on_data(m, x):
    if x.sum() > 0:
        return x
    return -x


def decide_on_batch(m, x):
    return x if x.shape[0] > 4 else -x


def decide_on_one(m, x):
    return x if x.shape[0] == 1 else -x


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    "module, error, message",
    [
        (made(decide_on_data), ModelError, f"values of its input at {line_of(decide_on_data, 1)}.*torch.where"),
        (made(decide_on_batch), ModelError, "depends on the batch size"),
        (made(decide_on_one), TraceMismatch, "disagree on a batch of 1.*number of samples"),
        (made(lambda m, x: x / x.shape[0]), UnsupportedOp, "a number computed from the batch size"),
        (made(lambda m, x: torch.from_numpy(x.numpy() * 2)), ModelError, "without NumPy"),
        (made(lambda m, x: torch.where(x > 0, x, -x)), UnsupportedOp, "use relu, maximum, minimum or clamp"),
        (made(lambda m, x: x + torch.randn_like(x)), UnsupportedOp, "draws random numbers"),
        (made(lambda m, x: x + torch.rand(4)), UnsupportedOp, "draws random numbers"),
        (made(lambda m, x: F.dropout(x, training=True)), UnsupportedOp, "draws random numbers"),
        (made(lambda m, x: x @ F.dropout(m.w, training=True)), UnsupportedOp, "draws random numbers"),
        (made(lambda m, x: x + F.alpha_dropout(m.shift, 0.1, True)), UnsupportedOp, "draws random numbers"),
        (made(lambda m, x: x * torch.bernoulli(m.shift.abs().clamp(max=1))), UnsupportedOp, "draws random numbers"),
        (made(lambda m, x: x + 1e-9 * torch.normal(m.shift, 1.0)), UnsupportedOp, "draws random numbers"),
        (made(lambda m, x: x[:, torch.randperm(4)]), UnsupportedOp, "draws random numbers"),
        (made(lambda m, x: x + m.shift[torch.randint(4, (1,))]), UnsupportedOp, "draws random numbers"),
        (made(lambda m, x: x + F.rrelu(m.shift, training=True)), UnsupportedOp, "draws random numbers"),
        (made(lambda m, x: x[:, m.shift.argmax()]), UnsupportedOp, "rule does not know arguments of this kind"),
        (made(lambda m, x: x.long() * 2), UnsupportedOp, "isn't floating-point"),
        (made(lambda m, x: x.half().float()), UnsupportedOp, "computes in float16.*use float32 throughout"),
        (made(lambda m, x: x.bfloat16() * 2), UnsupportedOp, "computes in bfloat16.*use float32 throughout"),
        (made(lambda m, x: x.float() * 2).double(), UnsupportedOp, "computes in float32.*use float64 throughout"),
        (made(lambda m, x: x).half(), UsageError, r"computes in float16.*call \.float\(\) on the module"),
        (made(lambda m, x: m.w), ModelError, "does not depend on its input"),
        (made(lambda m, x: (x, x)), ModelError, "returns 2 values; wrap it"),
        (Counter().eval(), ModelError, "changes its own 'calls'"),
    ],
)
def test_what_is_not_one_network_is_refused(module, error, message):
    with pytest.raises(error, match=message):
        trace(module, noise(2, 4))


def test_a_wrong_entry_beside_large_ones_is_noticed():
    """What the largest output hides is not small for a property about another one."""
    table = OPS | {"tanh": replace(OPS["tanh"], forward=lambda site, x: 1.01 * torch.tanh(x))}
    module = made(lambda m, x: torch.cat([1e6 * x, 1e-3 * torch.tanh(x)], 1))
    trace(module, noise(2, 4))
    with pytest.raises(TraceMismatch, match=r"disagree by .* in one output, where rounding explains"):
        trace(module, noise(2, 4), ops=table)


def test_outputs_that_cancel_may_differ_by_rounding():
    module = made(lambda m, x: 1e4 * (m.lin(x) - m.lin(x * (1 + 1e-6))))
    trace(module, noise(2, 4))


class Factor(nn.Module):
    """A number and a submodule, which a graph does not read again."""

    def __init__(self):
        super().__init__()
        self.factor = 1.0
        self.act = nn.ReLU()
        self.lin = nn.Linear(2, 2)

    def forward(self, x):
        return self.factor * self.act(self.lin(x))


@pytest.mark.parametrize(
    "change", [lambda m: setattr(m, "factor", -1.0), lambda m: setattr(m, "act", nn.Identity().eval())]
)
def test_verify_notices_what_the_graph_does_not_read_again(change):
    module = Factor().eval()
    graph = trace(module, noise(2, 2))
    prop = [robust(noise(2), 0, 0.1, classes=2, clip=None)]
    with torch.no_grad():
        module.lin.weight.mul_(2)
    verify(graph, prop)
    change(module)
    with pytest.raises(
        TraceMismatch, match=r"an attribute of the module that is no tensor has changed.*trace it again"
    ):
        verify(graph, prop)


def test_verify_refuses_a_module_in_half_precision():
    module = Factor().eval()
    graph = trace(module, noise(2, 2))
    module.half()
    with pytest.raises(UsageError, match="the module computes in float16"):
        verify(graph, [robust(noise(2), 0, 0.1, classes=2, clip=None)])


def test_half_precision_weights_are_rounded_by_torch():
    """What does not depend on the input may compute in any dtype: torch does it."""
    module = made(lambda m, x: x @ (m.w.half() * 3).float())
    agree(trace(module, noise(2, 4)), module, 4)


def test_a_half_precision_example_without_parameters():
    with pytest.raises(UsageError, match="computes in bfloat16"):
        trace(nn.ReLU().eval(), noise(2, 4, dtype=torch.bfloat16))


def test_a_wrong_graph_is_noticed():
    """The comparison with the module is what stands between a wrong rule and a wrong proof."""
    wrong = OPS | {"relu": Op(lambda site, x: x.clamp(min=-0.01), never, OPS["relu"].interval)}
    with pytest.raises(TraceMismatch, match="largest difference"):
        trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), noise(2, 4), ops=wrong)
