"""Rules: the same numbers in another shape or order, joined, copied, taken out, put in, or padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surebound.graph.torch_frontend.builder import Value
from surebound.graph.torch_frontend.call import Call, Rule


def reshape(c: Call) -> Value:
    """Everything that keeps the row-major order of the elements."""
    return c.reshape(c["self"], c.shape)


def permuted(c: Call, x: Value, dims: Sequence[int]) -> Value:
    """x with torch's axes in another order, the batch axis in front."""
    return c.transpose(x, [dim % x.rank - 1 for dim in dims[1:]] if x.batched else [dim % x.rank for dim in dims])


def swap(c: Call) -> Value:
    """transpose and t: two axes trade places."""
    x = c["self"]
    dims = list(range(x.rank))
    if x.rank > 1:
        first, second = c.get("dim0", -2), c.get("dim1", -1)
        dims[first], dims[second] = dims[second], dims[first]
    return permuted(c, x, dims)


def cat(c: Call) -> Value:
    """Tensors joined along an axis; torch ignores empty ones without shape."""
    parts = [c.floating(part) for part in c["tensors"] if part.batched or part.shape != (0,)]
    axis = c.axis_of(max(parts, key=lambda part: part.batched), c["dim"])
    return c.concat(c.aligned(parts), axis)


def stack(c: Call) -> Value:
    """Tensors joined along a new axis."""
    parts = c.aligned([c.floating(part) for part in c["tensors"]])
    axis = c["dim"] % (len(c.shape) + c.batched) - c.batched
    return c.concat([c.reshape(part, (*part.shape[:axis], 1, *part.shape[axis:])) for part in parts], axis)


def spread(c: Call, x: Value) -> Value:
    """Copies along axes of size 1 or new ones, in the shape of the result."""
    return c.expand(c.beside_batch(x, len(c.shape) + 1) if c.batched else x, c.shape)


def repeat(c: Call) -> Value:
    """Copies along axes, existing or new."""
    x, repeats = c["self"], c["repeats"][c.batched :]
    x = c.reshape(x, (*[1] * (len(repeats) - len(x.shape)), *x.shape))
    for axis, count in enumerate(repeats):
        x = x if count == 1 else c.gather(x, axis, [*range(x.shape[axis])] * count)
    return x


def full_like(c: Call) -> Value:
    """A number in the result's shape."""
    return c.expand(c.number(c["fill_value"]), c.shape)


def copy(c: Call) -> Value:
    """The source in the shape of the destination, which is overwritten."""
    return spread(c, c.floating(c["src"]))


def bounds(c: Call, size: int) -> tuple[int, int]:
    """Start and stop of a slice of an axis, within it."""
    start, stop, _ = slice(c["start"], c["end"]).indices(size)
    return start, max(start, stop)


def take_slice(c: Call) -> Value:
    """x[start:end:step] along an axis; along the batch axis all samples."""
    x = c["self"]
    if x.batched and c["dim"] % x.rank == 0:
        return x
    axis = c.axis_of(x, c["dim"])
    return c.slice(x, axis, *bounds(c, x.shape[axis]), c["step"])


def select(c: Call) -> Value:
    """x[index] along an axis."""
    x = c["self"]
    axis = c.axis_of(x, c["dim"])
    index = c["index"] % x.shape[axis]
    return c.reshape(c.slice(x, axis, index, index + 1), c.shape)


def split(c: Call) -> tuple[Value, ...]:
    """split, split_with_sizes, chunk: consecutive slices, with the sizes that torch found."""
    x = c["self"]
    axis = c.axis_of(x, c["dim"])
    ends = [0]
    for tensor in c.node.meta["val"]:
        ends.append(ends[-1] + int(tensor.shape[axis + x.batched]))
    return tuple(c.slice(x, axis, start, stop) for start, stop in zip(ends, ends[1:], strict=False))


def index_select(c: Call) -> Value:
    """The entries of one axis that fixed indices name."""
    return c.gather(c["self"], c.axis_of(c["self"], c["dim"]), c.indices(c["index"]))


def index(c: Call) -> Value:
    """x[:, indices] with one fixed tensor of indices."""
    places = [dim for dim, found in enumerate(c["indices"]) if found is not None]
    if len(places) != 1:
        raise c.refuse("only one axis at a time can be indexed by a tensor")
    axis = c.axis_of(c["self"], places[0])
    return c.reshape(c.gather(c["self"], axis, c.indices(c["indices"][places[0]])), c.shape)


def flip(c: Call) -> Value:
    """Axes in reverse order."""
    x = c["self"]
    for axis in c.axes_of(x, c["dims"]):
        x = c.gather(x, axis, range(x.shape[axis] - 1, -1, -1))
    return x


def pad(c: Call) -> Value:
    """Constant padding (negative widths crop), or padding with the tensor's own entries."""
    x, widths, mode = c["self"], c["pad"], c.get("mode", "constant")
    pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1][-len(x.shape) :]
    pairs = [(0, 0)] * (len(x.shape) - len(pairs)) + pairs
    for axis, (before, after) in enumerate(pairs):
        if mode != "constant" and (before or after):
            x = c.gather(x, axis, inside(c, x.shape[axis], range(-before, x.shape[axis] + after), mode))
        elif mode == "constant":
            x = c.slice(x, axis, max(-before, 0), x.shape[axis] - max(-after, 0))
    if mode != "constant":
        return x
    return c.pad(x, [(max(before, 0), max(after, 0)) for before, after in pairs], float(c["value"] or 0.0))


def inside(c: Call, size: int, places: range, mode: str) -> list[int]:
    """Which entry of an axis stands at each place of the padded axis."""
    if mode == "circular":
        return [place % size for place in places]
    if mode == "replicate":
        return [min(max(place, 0), size - 1) for place in places]
    if mode == "reflect":
        return [size - 1 - abs(size - 1 - abs(place)) for place in places]
    raise c.refuse(f"padding mode '{mode}' has no rule")


def slice_scatter(c: Call) -> Value:
    """The destination with x[start:end] along an axis replaced by the source."""
    x, piece = c.floating(c["self"]), c.floating(c["src"])
    if c["step"] != 1:
        raise c.refuse("only slices with step 1 can be overwritten")
    axis = c["dim"] % (len(c.shape) + c.batched) - c.batched
    if axis < 0:
        if c.builder.shape_of(c.node.all_input_nodes[1].meta["val"], batched=True) is None:
            raise c.mixed("it overwrites single samples")
        return spread(c, piece)
    x, piece = c.aligned([x, piece])
    start, stop = bounds(c, x.shape[axis])
    return c.concat([c.slice(x, axis, 0, start), piece, c.slice(x, axis, stop, x.shape[axis])], axis)


SHAPES: Mapping[str, Rule] = {
    "aten.view.default": reshape,
    "aten.reshape": reshape,
    "aten._unsafe_view": reshape,
    "aten.flatten": reshape,
    "aten.unflatten": reshape,
    "aten.squeeze": reshape,
    "aten.unsqueeze": reshape,
    "aten.permute": lambda c: permuted(c, c["self"], c["dims"]),
    "aten.transpose": swap,
    "aten.t": swap,
    "aten.cat": cat,
    "aten.stack": stack,
    "aten.expand": lambda c: spread(c, c["self"]),
    "aten.repeat": repeat,
    "aten.full_like": full_like,
    "aten.copy": copy,
    "aten.slice": take_slice,
    "aten.select": select,
    "aten.split": split,
    "aten.split_with_sizes": split,
    "aten.chunk": split,
    "aten.index_select": index_select,
    "aten.index": index,
    "aten.flip": flip,
    "aten.pad": pad,
    "aten.constant_pad_nd": pad,
    "aten.slice_scatter": slice_scatter,
}
