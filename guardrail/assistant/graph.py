"""A Llama decoder as an ONNX graph with 8-bit weights.

Inputs: `ids` (1, new), `last` (1) index of the last known position, `total` () number of positions, and per layer the keys and
values so far, `past.N.k|v` (1, kv_heads, past, head_width). Outputs: `logits` (1, 1, vocabulary) of the last position and
`present.N.k|v`. Operators: ONNX 21 and ONNX Runtime's own (docs/ContribOperators.md of its repository).

Weights are kept in blocks of 32, as the GGUF file has them, each block with a scale and a zero point. Measured on one core: 70
tokens/s and ready in a second, against 15 for transformers in float32, 17 in bfloat16, both ready in 5 to 7 s, and 43 for torch's
int8 with one scale per matrix, which made the model talk nonsense; 4 bits gave 78 tokens/s and other answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.assistant.gguf import Gguf, Shape

if TYPE_CHECKING:
    import numpy.typing as npt

    from guardrail.assistant.gguf import Array

BLOCK = 32
POSITIONS = 2048
"""Longest conversation, in tokens."""


def llama_graph(model: Gguf) -> Any:
    """The `onnx.ModelProto`; its pasts are `past_names(layers)` in this order."""
    import onnx
    from onnx import helper

    builder = _Builder(model.shape)
    builder.embedding(model.weights["token_embd.weight"])
    builder.rotary_positions()
    hidden = "embedded"
    for index in range(model.shape.layers):
        weights = {name: model.weights[f"blk.{index}.{name}.weight"] for name in _LAYER}
        hidden = builder.layer(str(index), hidden, weights)
    builder.logits(hidden, model.weights["output_norm.weight"])
    graph = helper.make_graph(builder.nodes, "llama", builder.inputs(), builder.outputs(), builder.constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return made


def past_names(layers: int) -> list[str]:
    """Names of keys and values per layer, without `past.` or `present.`."""
    return [f"{layer}.{part}" for layer in range(layers) for part in "kv"]


_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


class _Builder:
    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._head = (0, 0)

    def inputs(self) -> list[Any]:
        from onnx import TensorProto, helper

        named = [("ids", TensorProto.INT64, [1, "new"]), ("last", TensorProto.INT32, [1]), ("total", TensorProto.INT32, [])]
        return [*(helper.make_tensor_value_info(*spec) for spec in named), *self._memory("past", "past")]

    def outputs(self) -> list[Any]:
        from onnx import TensorProto, helper

        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, self._head[0]])
        return [logits, *self._memory("present", "total")]

    def _memory(self, prefix: str, length: str) -> list[Any]:
        from onnx import TensorProto, helper

        size = [1, self.shape.kv_heads, length, self.shape.head_width]
        names = past_names(self.shape.layers)
        return [helper.make_tensor_value_info(f"{prefix}.{name}", TensorProto.FLOAT, size) for name in names]

    def embedding(self, weights: Array) -> None:
        """`ids` -> `embedded`, out of the matrix that also gives the logits, which is so kept once."""
        import numpy as np
        from onnx import TensorProto

        self._head = (weights.shape[0], weights.shape[1])
        self._quantised("head", weights)
        for part in ("q", "scale", "zero"):
            self._node("Gather", [f"head.{part}", "ids"], f"row.{part}")
        self._node("Cast", ["row.q"], "row.levels", to=TensorProto.FLOAT)
        self._node("Cast", ["row.zero"], "row.zeros", to=TensorProto.FLOAT)
        axis = self._constant("axis", np.array([-1]))
        self._node("Unsqueeze", ["row.zeros", axis], "row.zeros3")
        self._node("Unsqueeze", ["row.scale", axis], "row.scale3")
        self._node("Sub", ["row.levels", "row.zeros3"], "row.centred")
        self._node("Mul", ["row.centred", "row.scale3"], "row.blocks")
        self._node("Reshape", ["row.blocks", self._constant("flat", np.array([0, 0, weights.shape[1]]))], "embedded")

    def rotary_positions(self) -> None:
        """Tables `cos` and `sin`, (positions, head_width / 2)."""
        import numpy as np

        width = self.shape.head_width
        angles = np.outer(np.arange(POSITIONS), self.shape.theta ** -(np.arange(0, width, 2) / width))
        self._constant("cos", np.cos(angles).astype(np.float32))
        self._constant("sin", np.sin(angles).astype(np.float32))

    def layer(self, n: str, hidden: str, weights: dict[str, Array]) -> str:
        """One decoder layer; returns the name of its output."""
        mixed = self._attention(n, self._norm(f"{n}.attn", hidden, weights["attn_norm"]), weights)
        added = self._node("Add", [hidden, mixed], f"{n}.attended")
        fed = self._feed_forward(n, self._norm(f"{n}.ffn", added, weights["ffn_norm"]), weights)
        return self._node("Add", [added, fed], f"{n}.out")

    def logits(self, hidden: str, norm: Array) -> None:
        """`logits` of the last position."""
        import numpy as np

        last = self._node("Gather", [hidden, self._constant("end", np.array([-1]))], "last_hidden", axis=1)
        self._multiply("head", self._norm("head", last, norm), "logits", self._head)

    def _attention(self, n: str, x: str, weights: dict[str, Array]) -> str:
        import numpy as np

        packed = np.concatenate([weights["attn_q"], weights["attn_k"], weights["attn_v"]])
        past = [f"past.{n}.k", f"past.{n}.v"]
        inputs = [self._linear(f"{n}.qkv", x, packed), "", "", *past, "last", "total", "cos", "sin"]
        self._node(
            "GroupQueryAttention",
            inputs,
            f"{n}.attention",
            f"present.{n}.k",
            f"present.{n}.v",
            num_heads=self.shape.heads,
            kv_num_heads=self.shape.kv_heads,
            do_rotary=1,
            rotary_interleaved=1,  # GGUF files order the rows of q and k so that neighbours turn together
        )
        return self._linear(f"{n}.o", f"{n}.attention", weights["attn_output"])

    def _feed_forward(self, n: str, x: str, weights: dict[str, Array]) -> str:
        import numpy as np

        both = self._linear(f"{n}.gate_up", x, np.concatenate([weights["ffn_gate"], weights["ffn_up"]]))
        self._node("Split", [both], f"{n}.gate", f"{n}.up", axis=-1, num_outputs=2)
        self._node("Sigmoid", [f"{n}.gate"], f"{n}.open")
        self._node("Mul", [f"{n}.gate", f"{n}.open"], f"{n}.silu")
        self._node("Mul", [f"{n}.silu", f"{n}.up"], f"{n}.gated")
        return self._linear(f"{n}.down", f"{n}.gated", weights["ffn_down"])

    def _norm(self, name: str, x: str, weight: Array) -> str:
        gain = self._constant(f"{name}.gain", weight)
        return self._node("SimplifiedLayerNormalization", [x, gain], f"{name}.normed", axis=-1, epsilon=self.shape.epsilon)

    def _linear(self, name: str, x: str, weights: Array) -> str:
        self._quantised(name, weights)
        return self._multiply(name, x, f"{name}.out", (weights.shape[0], weights.shape[1]))

    def _multiply(self, name: str, x: str, out: str, size: tuple[int, int]) -> str:
        inputs = [x, f"{name}.q", f"{name}.scale", f"{name}.zero"]
        # accuracy_level 4: activations in 8 bits too, else the weights are unpacked to float32 at each token (2 tokens/s)
        return self._node("MatMulNBits", inputs, out, N=size[0], K=size[1], bits=8, block_size=BLOCK, accuracy_level=4)

    def _quantised(self, name: str, weights: Array) -> None:
        for part, value in zip(("q", "scale", "zero"), quantised(weights), strict=True):
            self._constant(f"{name}.{part}", value)

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def _node(self, kind: str, inputs: list[str], *outputs: str, **attributes: float) -> str:
        from onnx import helper

        domain = "com.microsoft" if kind in ("MatMulNBits", "GroupQueryAttention") else ""
        self.nodes.append(helper.make_node(kind, inputs, list(outputs), domain=domain, **attributes))
        return outputs[0]


def quantised(weights: Array) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """A matrix (rows, columns) as levels (rows, blocks, 32), scales and zero points (rows, blocks): w = (level - zero) * scale.

    The range of a block takes in 0. The levels are 17 times finer than the 4 bits of the file, so little is lost.
    """
    import numpy as np

    blocks = weights.reshape(len(weights), -1, BLOCK)
    low = np.minimum(blocks.min(-1), 0)
    scale = (np.maximum(blocks.max(-1), 0) - low) / 255
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    zero = np.rint(-low / scale)
    levels = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, 255)
    return levels.astype(np.uint8), scale, zero.astype(np.uint8)
