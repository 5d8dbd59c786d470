"""The op table: one `Op` record for everything a graph can contain."""

from surebound.ops.affine import AFFINE
from surebound.ops.bilinear import BILINEAR
from surebound.ops.curved import CURVED
from surebound.ops.periodic import PERIODIC
from surebound.ops.piecewise import PIECEWISE
from surebound.ops.record import Interval, Lines, Op, Relaxation
from surebound.ops.reshape import RESHAPE
from surebound.ops.smooth import SMOOTH
from surebound.ops.steps import STEPS

OPS: dict[str, Op] = {**AFFINE, **RESHAPE, **PIECEWISE, **SMOOTH, **CURVED, **PERIODIC, **STEPS, **BILINEAR}

__all__ = ["OPS", "Interval", "Lines", "Op", "Relaxation"]
