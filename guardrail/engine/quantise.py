"""Matrix products in int8: a rewriting of an ONNX graph.

Each product `x @ W` with constant W is replaced. Activations get 8 bits per *row*, that is per token, over their range: one
outlier token does not coarsen the others, as it does where ONNX Runtime's own dynamic quantisation takes one scale per tensor.
Weights get a symmetric scale per column. Measured on a trained MiniLM and 661 real texts, one thread: RMS error of the logit
0.046 in 4.4 ms a text; QUInt8 per channel 0.12 in 6.0 ms, QInt8 per channel with reduced range 0.13 in 3.8 ms, fp32 7.9 ms.

The weights are scaled so that no pair of neighbours in a column can exceed the 16-bit sums of x86 processors without VNNI, which
saturate silently (VPMADDUBSW): the integer products are the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from onnx.helper import make_node
from onnx.numpy_helper import from_array, to_array

FEWEST_COLUMNS = 8
"""Narrower products, the classification head, stay in fp32: they cost nothing and decide everything."""


def quantise(model: ModelProto) -> ModelProto:
    """The model, in place, with every product by a constant matrix of `FEWEST_COLUMNS` columns or more in int8."""
    rewriting = _Rewriting(model.graph)
    nodes = [new for node in model.graph.node for new in rewriting.nodes_for(node)]
    weights = [weight for weight in model.graph.initializer if weight.name not in rewriting.replaced]
    for field, kept in (("node", nodes), ("initializer", [*weights, *rewriting.constants])):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(kept)
    return model


class _Rewriting:
    """`y = x @ W` as `s * (q @ V) * c + low * b`, with x = s * q + low by row, W = V * c by column, b the column sums of W."""

    def __init__(self, graph: GraphProto) -> None:
        self.replaced: set[str] = set()
        self.constants: list[TensorProto] = []
        self._weights = {weight.name: weight for weight in graph.initializer}
        self._rows: set[str] = set()
        self._constant("int8.axis", np.array([-1], np.int64))
        self._constant("int8.step", np.float32(1 / 255))
        self._constant("int8.least", np.float32(1e-6))
        self._constant("int8.half", np.float32(0.5))

    def nodes_for(self, node: NodeProto) -> list[NodeProto]:
        """What stands in the place of a node: itself, or the steps of its int8 form."""
        weight = self._weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2 or weight.dims[1] < FEWEST_COLUMNS:
            return [node]
        if weight.name not in self.replaced:
            self._replace(weight)
        x, y, w = node.input[0], node.output[0], node.input[1]
        steps = [] if x in self._rows else self._quantised_rows(x)
        return [
            *steps,
            make_node("MatMulInteger", [f"{x}.q", f"{w}.V"], [f"{y}.sums"]),
            make_node("Cast", [f"{y}.sums"], [f"{y}.floats"], to=TensorProto.FLOAT),
            make_node("Mul", [f"{y}.floats", f"{x}.s"], [f"{y}.rows"]),
            make_node("Mul", [f"{y}.rows", f"{w}.c"], [f"{y}.scaled"]),
            make_node("Mul", [f"{x}.low", f"{w}.b"], [f"{y}.shift"]),
            make_node("Add", [f"{y}.scaled", f"{y}.shift"], [y]),
        ]

    def _quantised_rows(self, x: str) -> list[NodeProto]:
        self._rows.add(x)
        return [
            make_node("ReduceMin", [x, "int8.axis"], [f"{x}.low"], keepdims=1),
            make_node("ReduceMax", [x, "int8.axis"], [f"{x}.high"], keepdims=1),
            make_node("Sub", [f"{x}.high", f"{x}.low"], [f"{x}.range"]),
            make_node("Mul", [f"{x}.range", "int8.step"], [f"{x}.step"]),
            make_node("Max", [f"{x}.step", "int8.least"], [f"{x}.s"]),
            make_node("Sub", [x, f"{x}.low"], [f"{x}.above"]),
            make_node("Div", [f"{x}.above", f"{x}.s"], [f"{x}.steps"]),
            make_node("Add", [f"{x}.steps", "int8.half"], [f"{x}.rounded"]),
            make_node("Cast", [f"{x}.rounded"], [f"{x}.q"], to=TensorProto.UINT8),
        ]

    def _replace(self, weight: TensorProto) -> None:
        values = to_array(weight)
        scale = column_scale(values)
        integers = np.rint(values / scale).astype(np.int8)
        self._constant(f"{weight.name}.V", integers)
        self._constant(f"{weight.name}.c", scale)
        self._constant(f"{weight.name}.b", (integers.astype(np.float64).sum(axis=0) * scale).astype(np.float32))
        self.replaced.add(weight.name)

    def _constant(self, name: str, value: Any) -> None:
        self.constants.append(from_array(np.asarray(value), name))


def column_scale(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(columns,) scales of an (inputs, columns) matrix: |V| <= 127, and two neighbours of one sign add up to 128 at most.

    Then 255 * 128 = 32640 fits the signed 16 bits in which x86 adds two neighbouring products; 127 leaves room for rounding.
    """
    pairs = np.pad(values, ((0, len(values) % 2), (0, 0))).reshape(-1, 2, values.shape[1])
    up, down = (np.clip(sign * pairs, 0, None).sum(axis=1).max(axis=0) for sign in (1, -1))
    scale: NDArray[np.float32] = (np.maximum(np.maximum(up, down), 1e-9) / 127).astype(np.float32)
    return scale
