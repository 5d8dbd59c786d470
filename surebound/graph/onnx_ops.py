"""What each ONNX op becomes: one rule per op, from a `Step` to the node (or nodes) that it computes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from surebound.graph.onnx_activations import celu, elu, hard_sigmoid, layer_norm, leaky_relu, prelu, selu, softmax
from surebound.graph.onnx_builder import Rule
from surebound.graph.onnx_elementwise import (
    absolute,
    alias,
    binary,
    cast,
    clip,
    extreme,
    folded,
    mean_of,
    power,
    unary,
    where,
)
from surebound.graph.onnx_products import gemm, matmul
from surebound.graph.onnx_shapes import (
    concat,
    expand,
    flatten,
    gather,
    pad,
    reduce,
    reduced_max,
    reshape,
    slices,
    split,
    squeeze,
    tile,
    transpose,
    unsqueeze,
)
from surebound.graph.onnx_windows import (
    average_pool,
    batch_norm,
    conv,
    conv_transpose,
    global_average_pool,
    global_max_pool,
    max_pool,
    resize,
)

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "Abs": absolute,
        "Add": binary("add"),
        "Atan": unary("atan"),
        "AveragePool": average_pool,
        "BatchNormalization": batch_norm,
        "Cast": cast,
        "Ceil": unary("ceil"),
        "Celu": celu,
        "Clip": clip,
        "Concat": concat,
        "Conv": conv,
        "ConvTranspose": conv_transpose,
        "Cos": unary("cos"),
        "Div": binary("div"),
        "Dropout": alias,
        "Elu": elu,
        "Erf": unary("erf"),
        "Exp": unary("exp"),
        "Expand": expand,
        "Flatten": flatten,
        "Floor": unary("floor"),
        "Gather": gather,
        "Gemm": gemm,
        "GlobalAveragePool": global_average_pool,
        "GlobalMaxPool": global_max_pool,
        "HardSigmoid": hard_sigmoid,
        "Identity": alias,
        "LayerNormalization": layer_norm,
        "LeakyRelu": leaky_relu,
        "Log": unary("log"),
        "MatMul": matmul,
        "Max": extreme("maximum"),
        "MaxPool": max_pool,
        "Mean": mean_of,
        "Min": extreme("minimum"),
        "Mul": binary("mul"),
        "Neg": unary("neg"),
        "PRelu": prelu,
        "Pad": pad,
        "Pow": power,
        "Reciprocal": unary("reciprocal"),
        "ReduceMax": reduced_max(1),
        "ReduceMean": reduce("mean"),
        "ReduceMin": reduced_max(-1),
        "ReduceSum": reduce("sum"),
        "Relu": unary("relu"),
        "Reshape": reshape,
        "Resize": resize,
        "Round": unary("round"),
        "Selu": selu,
        "Sigmoid": unary("sigmoid"),
        "Sign": unary("sign"),
        "Sin": unary("sin"),
        "Slice": slices,
        "Softmax": softmax,
        "Softplus": unary("softplus"),
        "Split": split,
        "Sqrt": unary("sqrt"),
        "Squeeze": squeeze,
        "Sub": binary("sub"),
        "Sum": folded("add"),
        "Tanh": unary("tanh"),
        "Tile": tile,
        "Transpose": transpose,
        "Unsqueeze": unsqueeze,
        "Upsample": resize,
        "Where": where,
    }
)
"""Rules by ONNX op. Ops on constants need none: they are folded before."""

DEFINED = frozenset(
    {
        *("CastLike", "Gelu", "GroupNormalization", "HardSwish", "LogSoftmax", "MeanVarianceNormalization", "Mish"),
        *("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare", "RMSNormalization"),
        *("Softsign", "Swish"),
    }
)
"""Ops that are replaced by the ops of which the standard makes them."""
