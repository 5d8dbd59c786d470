"""Small faults for the test suite to find: each replaces one piece of the package's source by a wrong one.

`old` must occur exactly once in its file, so a change of the source that a fault no longer fits is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass

Selection = tuple[str, str]
"""A test file and a pytest -k expression ("" for all of it)."""

INTERVALS: Selection = ("test_ops_contract.py", "interval")
LINES: Selection = ("test_ops_contract.py", "lines or loose or threshold or admissible or projecting")
TRANSPOSES: Selection = ("test_ops_contract.py", "pulled or transpose")
MAPS: Selection = ("test_maps_contract.py", "")
WINDOWS: Selection = (
    "test_patches.py",
    "chains or two_conv or every_neuron or by_hand or join or sums or pools or pads or values or whole_networks",
)
REGIONS: Selection = ("test_regions_contract.py", "")
SOUND: Selection = ("test_bounds_contract.py", "below_every_point or contain_every_value or spend_more")
EXACT: Selection = (
    "test_bounds_contract.py",
    "hand or exact or one_point or optimisation or optimising or kept or convex or warm",
)
BATCHES: Selection = ("test_bounds_contract.py", "batch or memory or group or known or exact_already")
SPLITS: Selection = ("test_bounds_contract.py", "splits or addends")
GRADIENTS: Selection = ("test_bounds_contract.py", "derivatives and not l1")
NARROWED: Selection = ("test_bounds_contract.py", "matter or below_every_point or batch_is_a_loop")
QUERIES: Selection = ("test_bounds_contract.py", "inner or several or root or perturbs or named")
ORDER: Selection = ("test_order.py", "")
HOSTILE: Selection = ("test_hostile.py", "")
LEFT_OUT: Selection = ("test_bounds_contract.py", "leaving_out or not_left_out or own_columns")
CACHED: Selection = ("test_bounds_contract.py", "made_once")
TRAINED: Selection = ("test_objectives.py", "engine or moments or scales or norms or hold")
OBJECTIVE: Selection = ("test_objectives.py", "quotient or gradients or classes")
FUSED: Selection = ("test_objectives.py", "fused")
RESUMED: Selection = ("test_recipes.py", "bit_for_bit and sgd")
KILLED: Selection = ("test_recipes.py", "between_two_files")
LIVE: Selection = ("test_ops_contract.py", "left_out")


@dataclass(frozen=True)
class Mutation:
    """A fault: in `file` (relative to the package) `old` becomes `new`; `tests` must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: Selection


MUTATIONS = (
    # --- ops: intervals
    Mutation(
        "IBP forgets the absolute value of the weights",
        "ops/affine.py",
        "spread = apply(radius, w.lower.abs(), None)",
        "spread = apply(radius, w.lower, None)",
        INTERVALS,
    ),
    Mutation(
        "IBP's radius is 0.999 of the radius",
        "ops/affine.py",
        "return centre, torch.where(short,",
        "return centre, 0.999 * torch.where(short,",
        INTERVALS,
    ),
    Mutation(
        "IBP forgets the bias",
        "ops/affine.py",
        "middle = apply(centre, w.lower, None if b is None else b.lower)",
        "middle = apply(centre, w.lower, None)",
        INTERVALS,
    ),
    Mutation(
        "a difference's ends are differences of ends",
        "ops/affine.py",
        "Interval(sub_forward(site, x.lower, y.upper), sub_forward(site, x.upper, y.lower))",
        "Interval(sub_forward(site, x.lower, y.lower), sub_forward(site, x.upper, y.upper))",
        INTERVALS,
    ),
    Mutation(
        "a negated interval keeps its order",
        "ops/affine.py",
        "return Interval(-x.upper, -x.lower)",
        "return Interval(-x.lower, -x.upper)",
        INTERVALS,
    ),
    Mutation(
        "a product of intervals uses two of four corners",
        "ops/affine.py",
        "corners = [mul_forward(site, a, b) for a in set_of(x) for b in set_of(y)]",
        "corners = [mul_forward(site, x.lower, y.lower), mul_forward(site, x.upper, y.upper)]",
        INTERVALS,
    ),
    Mutation(
        "a merged maximum's upper end is a minimum",
        "ops/affine.py",
        "torch.maximum(a.lower, b.lower), torch.maximum(a.upper, b.upper)",
        "torch.maximum(a.lower, b.lower), torch.minimum(a.upper, b.upper)",
        INTERVALS,
    ),
    Mutation(
        "a monotone op's upper end comes from the lower ends",
        "ops/reshape.py",
        "upper = forward(site, *(operand.upper for operand in operands))",
        "upper = forward(site, *(operand.lower for operand in operands))",
        INTERVALS,
    ),
    Mutation(
        "a leaky relu of negative slope has no kink",
        "ops/piecewise.py",
        "return Interval(torch.where(inside, low.clamp(max=0), low), ",
        "return Interval(low, ",
        INTERVALS,
    ),
    Mutation(
        "a grafted line of negative slope keeps its order",
        "ops/piecewise.py",
        "low = torch.where(mask.lower, torch.minimum(*ends), x.lower.clamp(min=0))",
        "low = torch.where(mask.lower, ends[0], x.lower.clamp(min=0))",
        INTERVALS,
    ),
    # --- ops: relaxations
    Mutation(
        "relu's lower and upper lines are swapped",
        "ops/piecewise.py",
        "return Lines(free[0], None, frame[0], frame[1])",
        "return Lines(frame[0], frame[1], free[0], None)",
        LINES,
    ),
    Mutation(
        "the chord's intercept is 0.999 of it",
        "ops/piecewise.py",
        "(left - right) * weight * lower, torch.zeros_like(lower)",
        "(left - right) * weight * lower * 0.999, torch.zeros_like(lower)",
        LINES,
    ),
    Mutation(
        "the chord's slope is 0.999 of it",
        "ops/piecewise.py",
        "left + (right - left) * weight, exact)",
        "(left + (right - left) * weight) * 0.999, exact)",
        LINES,
    ),
    Mutation(
        "a concave kink is treated as a convex one",
        "ops/piecewise.py",
        'convex_lines if site.attrs["slope"] <= 1 else',
        'convex_lines if site.attrs["slope"] <= 9 else',
        LINES,
    ),
    Mutation(
        "free values may lie a little above their limit",
        "ops/record.py",
        "(low + high) / 2, free), low, high)",
        "(low + high) / 2, free), low, high + 0.001)",
        LINES,
    ),
    Mutation(
        "clip's lower line is as steep as the function",
        "ops/piecewise.py",
        "slope_low = torch.where(at_low, free[0] * steep_low, chord)",
        "slope_low = torch.where(at_low, free[0], chord)",
        LINES,
    ),
    Mutation(
        "clip splits at the mirrored kink",
        "ops/piecewise.py",
        "torch.where(prefer_low, zero + low, ",
        "torch.where(prefer_low, zero - low, ",
        LINES,
    ),
    Mutation(
        "a grafted neuron keeps relu's upper intercept",
        "ops/piecewise.py",
        "torch.where(mask, intercept, above), *slopes",
        "above, *slopes",
        LINES,
    ),
    Mutation(
        "the grafted neurons are the loose ones",
        "ops/piecewise.py",
        "return (lower < 0) & (upper > 0) & ~mask",
        "return (lower < 0) & (upper > 0) & mask",
        LINES,
    ),
    Mutation(
        "relus that reach a little below zero count as stable",
        "ops/piecewise.py",
        "return (lower < 0) & (upper > 0)\n",
        "return (lower < -0.1) & (upper > 0)\n",
        LINES,
    ),
    Mutation(
        "an S-shape is mirrored around zero",
        "ops/smooth.py",
        "line(curve, frame[4:8], free[0], -1)",
        "line(curve, frame[4:8], free[0], 1)",
        LINES,
    ),
    Mutation(
        "a tangent is drawn where none is sound",
        "ops/smooth.py",
        "use_tangent = exists & (upper > 0) & ~tiny",
        "use_tangent = (upper > 0) & ~tiny",
        LINES,
    ),
    Mutation(
        "the tangent's range starts at the box's end",
        "ops/smooth.py",
        "return start, upper, use_tangent, torch",
        "return lower, upper, use_tangent, torch",
        LINES,
    ),
    Mutation(
        "the tangent is accepted a millionth too early",
        "ops/smooth.py",
        "return curve.f(d) + curve.slope(d) * (lower - d) >= curve.f(lower)",
        "return curve.f(d) + curve.slope(d) * (lower - d) >= curve.f(lower) - 1e-6",
        LINES,
    ),
    # --- linear
    Mutation(
        "a transposed convolution loses half its padding",
        "linear/conv.py",
        "None, stride, padding, missing, groups, dilation)",
        "None, stride, [p // 2 for p in padding], missing, groups, dilation)",
        TRANSPOSES,
    ),
    Mutation(
        "a convolution's bias counts once per channel",
        "linear/pull.py",
        "(dense.sum((2, 3)) @ bias)",
        "(dense.mean((2, 3)) @ bias)",
        TRANSPOSES,
    ),
    Mutation(
        "single rows forget the bias",
        "linear/pull.py",
        "added = None if bias is None else bias[rows.index] * rows.coefficients",
        "added = None",
        TRANSPOSES,
    ),
    Mutation(
        "a subtracted operand keeps its sign",
        "linear/pull.py",
        "rows.negated() if minus else rows",
        "rows",
        TRANSPOSES,
    ),
    Mutation("a quotient is a product", "linear/pull.py", "1 / constant(", "constant(", TRANSPOSES),
    Mutation(
        "batch norm forgets the shift",
        "linear/pull.py",
        "return maps, rows.dot(shift[None, None])",
        "return maps, None",
        TRANSPOSES,
    ),
    Mutation(
        "a broadcast operand gets the mean instead of the sum",
        "linear/pull.py",
        "rows.sum(axes, keepdim=True) if axes else rows",
        "rows.mean(axes, keepdim=True) if axes else rows",
        TRANSPOSES,
    ),
    Mutation(
        "the derived transpose forgets the constant",
        "linear/pull.py",
        "return maps, rows.dot(forward(site, *zeros).unsqueeze(1))",
        "return maps, None",
        TRANSPOSES,
    ),
    Mutation(
        "single rows read where the first group's rows do",
        "linear/maps.py",
        "entries[:, 0].expand(groups, -1).gather(1, self.index)",
        "entries[:, 0].expand(groups, -1).gather(1, self.index[:1].expand(groups, -1))",
        MAPS,
    ),
    Mutation(
        "negative coefficients are scaled like positive ones",
        "linear/relaxed.py",
        "return mixed(up, ls, down, us), constant",
        "return mixed(up, ls, down, ls), constant",
        MAPS,
    ),
    Mutation(
        "an absolute value is forgotten",
        "linear/maps.py",
        "contract(merged(self.coefficients.abs(), 2), self.flat(radius))",
        "contract(merged(self.coefficients, 2), self.flat(radius))",
        MAPS,
    ),
    Mutation(
        "a sum of maps writes into its operand",
        "linear/maps.py",
        "return Dense(self.dense() + other.dense())",
        "return Dense(self.dense().add_(other.dense()))",
        MAPS,
    ),
    # --- linear: convolutions in blocks, windows, relaxed steps
    Mutation(
        "output padding of a transposed convolution is empty",
        "linear/conv.py",
        "missing, groups, dilation)",
        "missing, groups, dilation).index_fill_(2, torch.arange(size[0] - missing[0], size[0]), 0)",
        TRANSPOSES,
    ),
    Mutation(
        "blocks of output pixels take mirrored taps",
        "linear/conv.py",
        "unsqueeze(1) - stride * entry",
        "unsqueeze(1) + stride * entry",
        WINDOWS,
    ),
    Mutation(
        "blocks that stick out at the right and the bottom stay empty",
        "linear/conv.py",
        "F.pad(rows, (0, steps[1] - odd[1] if odd[1] else 0, 0, steps[0] - odd[0] if odd[0] else 0))",
        "rows",
        WINDOWS,
    ),
    Mutation(
        "blocks of output pixels are cut as if there were no padding",
        "linear/conv.py",
        "found[:, :, top : top + height, left : left + width]",
        "found[:, :, :height, :width]",
        WINDOWS,
    ),
    Mutation(
        "a transposed convolution's gradient mirrors the kernel",
        "linear/conv.py",
        "F.conv2d(g, weight, None, *attributes)",
        "F.conv2d(g, weight.flip(2, 3), None, *attributes)",
        WINDOWS,
    ),
    Mutation(
        "windows of a convolution's operand ignore its padding",
        "linear/patches.py",
        "self.offset[i] * stride[i] - padding[i]",
        "self.offset[i] * stride[i]",
        WINDOWS,
    ),
    Mutation(
        "windows hold coefficients beyond the edge",
        "linear/patches.py",
        "return windows.mul_(inside.reshape(*self.rows, 1, *self.size))",
        "return windows",
        WINDOWS,
    ),
    Mutation(
        "windows of different strides are added",
        "linear/patches.py",
        " or self.stride != other.stride",
        "",
        WINDOWS,
    ),
    Mutation(
        "windows grow at the wrong side",
        "linear/patches.py",
        "inner.offset[1] - left, right - inner.end[1],",
        "right - inner.end[1], inner.offset[1] - left,",
        WINDOWS,
    ),
    Mutation(
        "windows read the first group's values",
        "linear/patches.py",
        "(self.anchors.cell + first)",
        "(self.anchors.cell + 0 * first)",
        WINDOWS,
    ),
    Mutation(
        "windows forget a convolution's bias",
        "linear/pull.py",
        "added = None if bias is None else rows.dot(bias[None, None, :, None, None])",
        "added = None",
        WINDOWS,
    ),
    Mutation(
        "what windows read of a pad has the wrong sign",
        "linear/pull.py",
        "padding.sum((2, 3, 4)) * site",
        "-padding.sum((2, 3, 4)) * site",
        WINDOWS,
    ),
    Mutation(
        "windows of a pad move the other way",
        "linear/pull.py",
        "(top - down[0], left - across[0])",
        "(top + down[0], left + across[0])",
        WINDOWS,
    ),
    Mutation(
        "average pools that hang over have one divisor",
        "linear/pull.py",
        "if not inside or not (",
        "if not (",
        WINDOWS,
    ),
    Mutation(
        "grouped kernels read the mirrored group",
        "linear/pull.py",
        "kernel[each, :, each, :,",
        "kernel[each, :, each.flip(0), :,",
        WINDOWS,
    ),
    Mutation(
        "a relaxed step's gradient takes the other line",
        "linear/relaxed.py",
        "torch.lerp(above, below, positive(a))",
        "torch.lerp(below, above, positive(a))",
        MAPS,
    ),
    Mutation(
        "a relaxed step's gradient forgets the intercept",
        "linear/relaxed.py",
        "above if ui is None else above.addcmul_(c, ui)",
        "above",
        MAPS,
    ),
    Mutation(
        "an upper slope's gradient counts positive coefficients",
        "linear/relaxed.py",
        "collected(g * down, us)",
        "collected(g * a, us)",
        MAPS,
    ),
    Mutation(
        "a box's end has the lower end for negative coefficients",
        "linear/relaxed.py",
        "at_lower + contract(merged(half, 2), spread(upper, a))",
        "at_lower + contract(merged(half, 2), spread(lower, a))",
        REGIONS,
    ),
    Mutation(
        "a box's end has the wrong gradient",
        "linear/relaxed.py",
        "torch.lerp(upper, lower, positive(a)).mul_(g)",
        "torch.lerp(lower, upper, positive(a)).mul_(g)",
        GRADIENTS,
    ),
    # --- regions
    Mutation(
        "a box's minimum uses 0.999 of the radius",
        "regions/box.py",
        "least(rows, self.lower.unsqueeze(1), self.upper.unsqueeze(1))",
        "least(rows, self.lower.unsqueeze(1), (self.upper - 0.001 * self.radius).unsqueeze(1))",
        REGIONS,
    ),
    Mutation(
        "a box's minimiser is its maximiser",
        "regions/box.py",
        "torch.where(rows.dense() > 0, self.lower.unsqueeze(1), self.upper.unsqueeze(1))",
        "torch.where(rows.dense() < 0, self.lower.unsqueeze(1), self.upper.unsqueeze(1))",
        REGIONS,
    ),
    Mutation("a cast box is rounded to the nearest", "regions/box.py", "torch.nextafter(high, inf)", "high", REGIONS),
    Mutation(
        "a ball moves away from the wrong limits",
        "regions/ball.py",
        "torch.where(a > 0, down.unsqueeze(1), up.unsqueeze(1))",
        "torch.where(a < 0, down.unsqueeze(1), up.unsqueeze(1))",
        REGIONS,
    ),
    Mutation(
        "an l2 ball's multiplier is charged 0.999 of the radius",
        "regions/ball.py",
        "mu.squeeze(-1) * self.radius[:, None].square() / 2",
        "mu.squeeze(-1) * (0.999 * self.radius[:, None]).square() / 2",
        REGIONS,
    ),
    Mutation(
        "an l1 ball spends its radius too early",
        "regions/ball.py",
        "before = caps.cumsum(-1) - caps",
        "before = caps.cumsum(-1)",
        REGIONS,
    ),
    Mutation(
        "a ball's projection is only clipped",
        "regions/ball.py",
        "shrink = (self.radius[:, None] / ",
        "shrink = (2 * self.radius[:, None] / ",
        REGIONS,
    ),
    # --- bounds
    Mutation(
        "the walk takes the upper intercept for positive coefficients",
        "bounds/walk.py",
        "below, added = relaxed(here, lines(name, here))",
        "ls, li, us, ui = lines(name, here)\n            below, added = relaxed(here, Lines(ls, ui, us, li))",
        SOUND,
    ),
    Mutation(
        "the walk takes the upper slope for positive coefficients",
        "bounds/walk.py",
        "below, added = relaxed(here, lines(name, here))",
        "ls, li, us, ui = lines(name, here)\n            below, added = relaxed(here, Lines(us, li, ls, ui))",
        SOUND,
    ),
    Mutation(
        "a skip connection forgets one of its ways",
        "bounds/walk.py",
        "part if operand not in pending else pending[operand] + part",
        "part",
        SOUND,
    ),
    Mutation(
        "the walk forgets the constants of affine steps",
        "bounds/walk.py",
        "        if added is not None:\n            constant = constant + added\n",
        "        if added is not None and not step.affine:\n            constant = constant + added\n",
        SOUND,
    ),
    Mutation(
        "the walk forgets the splits' constants",
        "bounds/walk.py",
        "constant = constant + addend.constant",
        "constant = constant + 0 * addend.constant",
        SPLITS,
    ),
    Mutation(
        "a split's multiplier has the wrong sign",
        "bounds/beta.py",
        "zeros.scatter_add(2, at, -weight)",
        "zeros.scatter_add(2, at, weight)",
        SPLITS,
    ),
    Mutation(
        "a split's threshold has the wrong sign",
        "bounds/beta.py",
        "(weight * threshold).sum(-1)",
        "(-weight * threshold).sum(-1)",
        SPLITS,
    ),
    Mutation(
        "a split's unit keeps its sign to itself",
        "bounds/beta.py",
        "self.sign if self.unit is None else self.sign * self.unit",
        "self.sign if self.unit is None else self.unit",
        SPLITS,
    ),
    Mutation(
        "a split cuts the other half away",
        "bounds/beta.py",
        "low = torch.where(here & (self.sign > 0), self.threshold, -torch.inf)",
        "low = torch.where(here & (self.sign < 0), self.threshold, -torch.inf)",
        SPLITS,
    ),
    Mutation(
        "multipliers may be negative",
        "bounds/work.py",
        "torch.zeros_like(self.beta), None)",
        "torch.full_like(self.beta, -5), None)",
        SPLITS,
    ),
    Mutation(
        "alphas leave their limits as they climb",
        "bounds/work.py",
        "face.climber.step(face.free, next(slopes), face.low, face.high)",
        "face.climber.step(face.free, next(slopes), None, None)",
        EXACT,
    ),
    Mutation(
        "the last bound is kept, not the best",
        "bounds/work.py",
        "up = lower.flatten() > now",
        "up = lower.flatten() == lower.flatten()",
        EXACT,
    ),
    Mutation(
        "a conjunction's thresholds are added",
        "bounds/work.py",
        "-(weights * self.threshold).sum(1, True)",
        "(weights * self.threshold).sum(1, True)",
        EXACT,
    ),
    Mutation(
        "tightened upper ends keep the sign of their rows",
        "bounds/crown.py",
        "upper.index_put(places, -found[own, 1, row])",
        "upper.index_put(places, found[own, 1, row])",
        SOUND,
    ),
    Mutation(
        "packed rows use the first group's region",
        "bounds/crown.py",
        "region.take(groups)",
        "region.take(groups * 0)",
        BATCHES,
    ),
    Mutation(
        "packed rows use the first group's boxes",
        "bounds/crown.py",
        "Interval(boxes[name].lower[groups], boxes[name].upper[groups])",
        "Interval(boxes[name].lower[groups * 0], boxes[name].upper[groups * 0])",
        BATCHES,
    ),
    Mutation(
        "an upper end that is not a number is zero",
        "bounds/ibp.py",
        "box.upper.nan_to_num(nan=torch.inf,",
        "box.upper.nan_to_num(nan=0.0,",
        HOSTILE,
    ),
    Mutation(
        "boxes are joined instead of intersected",
        "bounds/ibp.py",
        "torch.maximum(a.lower, b.lower), torch.minimum(a.upper, b.upper)",
        "torch.minimum(a.lower, b.lower), torch.maximum(a.upper, b.upper)",
        BATCHES,
    ),
    Mutation(
        "interval bounds behind several mixing steps count as exact",
        "bounds/plan.py",
        "return mixing <= 1",
        "return mixing <= 2",
        BATCHES,
    ),
    Mutation(
        "perturbed second operands are let through",
        "bounds/plan.py",
        "if not step.affine and any(step.perturbed[1:]):",
        "if not step.affine and any(step.perturbed[:0]):",
        QUERIES,
    ),
    # --- bounds: optimisation
    Mutation(
        "given free values are not made admissible",
        "bounds/work.py",
        "relaxation.project(step.site, frame, self.given[name].detach())",
        "self.given[name].detach()",
        EXACT,
    ),
    Mutation(
        "the first free values are kept, not the best",
        "bounds/work.py",
        "improved(value, work.faces[name].free, 1)",
        "value",
        EXACT,
    ),
    Mutation(
        "bounds are noted for the wrong rows",
        "bounds/work.py",
        "place = self.place[groups, rows]",
        "place = self.place[groups, rows.flip(1)]",
        NARROWED,
    ),
    Mutation(
        "narrowed work goes on with the first row",
        "bounds/work.py",
        "target.pick(groups, rows)",
        "target.pick(groups, rows * 0)",
        NARROWED,
    ),
    Mutation(
        "narrowed work goes on in the first group's region",
        "bounds/work.py",
        "region.take(at)",
        "region.take(at * 0)",
        NARROWED,
    ),
    Mutation(
        "rows that are done go on",
        "bounds/alpha.py",
        "argsort(dim=1, descending=True, stable=True)",
        "argsort(dim=1, stable=True)",
        NARROWED,
    ),
    Mutation(
        "pieces of groups optimise the first group's rows",
        "bounds/alpha.py",
        "target.groups(at)",
        "target.groups(at * 0)",
        BATCHES,
    ),
    Mutation(
        "pieces of groups use the first group's splits",
        "bounds/alpha.py",
        "splits.at(at)",
        "splits.at(at * 0)",
        BATCHES,
    ),
    Mutation(
        "packed rows use the first group's values",
        "bounds/crown.py",
        "name: value[groups] if graph",
        "name: value[groups * 0] if graph",
        BATCHES,
    ),
    Mutation(
        "limits on one side are ignored",
        "bounds/climb.py",
        "if low is not None or high is not None",
        "if low is not None and high is not None",
        SPLITS,
    ),
    Mutation(
        "steps go downhill",
        "bounds/climb.py",
        "value=self.rate * unbiased",
        "value=-self.rate * unbiased",
        EXACT,
    ),
    # --- broken arithmetic
    Mutation(
        "an end that is not a number is zero",
        "bounds/ibp.py",
        "box.lower.nan_to_num(nan=-torch.inf, ",
        "box.lower.nan_to_num(nan=0.0, ",
        HOSTILE,
    ),
    Mutation(
        "a centre's radius is not stretched to the far end",
        "ops/affine.py",
        "return centre, torch.where(short, radius * (1 + 2 * torch.finfo(radius.dtype).eps), radius)",
        "return centre, radius",
        HOSTILE,
    ),
    Mutation(
        "a maximum with a constant is written with relu",
        "graph/passes.py",
        "if not (a.batched and b.batched):",
        "if not (a.batched or b.batched):",
        HOSTILE,
    ),
    Mutation(
        "a maximum's rows keep the result's shape",
        "linear/pull.py",
        "[*(onto(site, node, rows) for node in site.operands[:2]), None]",
        "[rows, rows, None]",
        HOSTILE,
    ),
    Mutation(
        "the lower line of an S-shape is mirrored as a value",
        "ops/smooth.py",
        "slope, curve.f(side * touches) - slope * (side * touches)",
        "slope, (1 - side) * curve.f(0 * end) + side * (curve.f(touches) - slope * touches)",
        HOSTILE,
    ),
    Mutation(
        "a node without samples may have a region",
        "bounds/plan.py",
        "if not graph[name].batched:",
        "if graph[name].batched is None:",
        HOSTILE,
    ),
    Mutation(
        "the floor's lower line starts at zero",
        "ops/piecewise.py",
        "return Lines(free[0], (1 - free[0]) * frame[4], frame[0], frame[1])",
        "return Lines(free[0], None, frame[0], frame[1])",
        LINES,
    ),
    # --- entries that are left out
    Mutation(
        "neurons that are surely on are left out",
        "bounds/walk.py",
        "found if part is None else found & (part == 0)",
        "found",
        LEFT_OUT,
    ),
    Mutation(
        "only the slopes are asked whether a neuron is zero",
        "bounds/walk.py",
        "found & (part == 0)",
        "found & (lines.upper_slope == 0)",
        LEFT_OUT,
    ),
    Mutation(
        "columns are taken from the first group's weights",
        "linear/pull.py",
        "used = weight[rows.index.unsqueeze(2), live.unsqueeze(1)]",
        "used = weight[rows.index.unsqueeze(2), live[:1].unsqueeze(1)]",
        LIVE,
    ),
    Mutation(
        "rows over columns forget the bias",
        "linear/pull.py",
        "    added = None if bias is None else rows.dot(bias.expand(1, 1, *site.shape))\n    return [Columns(",
        "    added = None\n    return [Columns(",
        LIVE,
    ),
    Mutation(
        "narrowed groups keep the first groups' columns",
        "bounds/work.py",
        "live = self.live if everyone else {name: index[at] for name, index in self.live.items()}",
        "live = self.live if everyone else {name: index[: len(at)] for name, index in self.live.items()}",
        LEFT_OUT,
    ),
    # --- training
    Mutation(
        "what was made for a box is used for every box",
        "bounds/crown.py",
        "    if known is None or known[0] is not box:\n",
        "    if known is None:\n",
        CACHED,
    ),
    Mutation(
        "what was made without gradients is used with them",
        "bounds/crown.py",
        "    key = (step.site.node.name, make, torch.is_grad_enabled())",
        "    key = (step.site.node.name, make)",
        CACHED,
    ),
    Mutation(
        "a training radius passes signed weights",
        "training/balls.py",
        "        return w.abs()",
        "        return w.clone()",
        TRAINED,
    ),
    Mutation(
        "the gradient of |w| forgets the sign",
        "training/balls.py",
        "        return w.sign().mul_(grad_outputs[0])",
        "        return grad_outputs[0].clone()",
        OBJECTIVE,
    ),
    Mutation(
        "relu on a ball hands the radius's gradient to the wrong end",
        "training/balls.py",
        "        of_lower = (of_centre - of_radius).mul_(0.5).mul_(above)",
        "        of_lower = (of_centre + of_radius).mul_(0.5).mul_(above)",
        OBJECTIVE,
    ),
    Mutation(
        "a folded norm forgets its eps",
        "training/trainee.py",
        "torch.rsqrt(values[self.var] + self.eps)",
        "torch.rsqrt(values[self.var])",
        TRAINED,
    ),
    Mutation(
        "a folded norm does not scale the bias",
        "training/trainee.py",
        "torch.addcmul(values[self.shift], bias, scale)",
        "values[self.shift] + bias",
        TRAINED,
    ),
    Mutation(
        "moments are held fixed",
        "training/trainee.py",
        "        return torch.addcmul(offset.reshape(tail), x, slope.reshape(tail))",
        "        return torch.zeros_like(x)",
        OBJECTIVE,
    ),
    Mutation(
        "a later pass keeps the moments of the first",
        "training/scene.py",
        "        logits, self._given = self.trainee.forward(x)\n        self._moments = None\n",
        "        logits, self._given = self.trainee.forward(x)\n",
        TRAINED,
    ),
    Mutation(
        "fused loss takes the tangent at the upper end",
        "training/fusion.py",
        "torch.where(width > TINY, chord, torch.zeros_like(chord))",
        "high",
        FUSED,
    ),
    Mutation(
        "fused loss forgets the constant of the chords",
        "training/fusion.py",
        "        crown = intercept - bounded.crown(",
        "        crown = -bounded.crown(",
        FUSED,
    ),
    Mutation(
        "a difference of logits forgets the label's own row",
        "training/fusion.py",
        "            of_w.index_add_(0, y[at], part.sum(1), alpha=-1)\n",
        "",
        OBJECTIVE,
    ),
    Mutation(
        "NRS lets the scale learn",
        "training/scene.py",
        "self.trainee.values(still, self.trainee.scales.values())",
        "self.trainee.values(still)",
        TRAINED,
    ),
    Mutation(
        "an interrupted epoch begins anew",
        "training/loop.py",
        "        for index in order[place:]:",
        "        for index in order:",
        RESUMED,
    ),
    Mutation(
        "a step's noise depends on the session",
        "training/loop.py",
        "            generator = drawn(run.seed, state.step)\n",
        "            generator = drawn(run.seed, state.step - place)\n",
        RESUMED,
    ),
    Mutation(
        "an epoch is kept before it is told",
        "training/loop.py",
        "        if progress is not None:",
        "        if checkpoint is not None:\n            checkpoint.save(state)\n        if progress is not None:",
        KILLED,
    ),
    Mutation(
        "measured epochs are those of the session",
        "fit.py",
        "watch.epoch = (done - 1) // per_epoch + 1",
        "watch.epoch += done % per_epoch == 1",
        KILLED,
    ),
    # --- the same ideas, found by linear programs alone
    Mutation(
        "relu's chord is lowered by a hundredth (seen by the order suite)",
        "ops/piecewise.py",
        "(left - right) * weight * lower, torch.zeros_like(lower)",
        "(left - right) * weight * lower * 0.99, torch.zeros_like(lower)",
        ORDER,
    ),
    Mutation(
        "a split's multiplier has the wrong sign (seen by the order suite)",
        "bounds/beta.py",
        "zeros.scatter_add(2, at, -weight)",
        "zeros.scatter_add(2, at, weight)",
        ORDER,
    ),
)
