"""What a screened prefill must give, computed the plain way: dense tensors, no pool, no slots, no schedule.

It shares the weights' modules with the engine and nothing of its cache, attention, runner or scheduler. Keys are kept
un-rotated and rotated at the reader's positions.

Shapes: L layers, P positions, K kv heads, D head dimension, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agentkv_engine.model.decoder import Decoder
from agentkv_engine.model.rope import rotate


@dataclass(frozen=True, slots=True)
class DenseKV:
    """Un-rotated K and V of every layer: lists of [P, K, D]. Slicing takes positions."""

    keys: list[Tensor]
    values: list[Tensor]

    def __getitem__(self, part: slice) -> "DenseKV":
        return DenseKV([k[part] for k in self.keys], [v[part] for v in self.values])


class DenseOracle:
    """A decoder run densely, with a depth for every position."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @torch.inference_mode()
    def run(
        self,
        token_ids: tuple[int, ...],
        depths: list[int] | None = None,
        reused: list[tuple[int, DenseKV]] | None = None,
        hidden_keys: set[int] | None = None,
    ) -> tuple[Tensor, DenseKV, list[Tensor]]:
        """Compute every position through its depth (all layers, unless said), over reused KV elsewhere.

        Args:
            token_ids: the prompt.
            depths: layers of each position; positions below full depth must lie in `reused`.
            reused: (start, KV) of reused spans.
            hidden_keys: positions that nobody sees (a probe's fresh text between spans).

        Returns:
            logits [P, V] (only those of full-depth rows mean anything), the KV that a reader of this prompt would
            reuse, and each layer's head-mean attention [P, P].
        """
        config, size = self._decoder.config, len(token_ids)
        depth_P = torch.tensor(depths if depths is not None else [config.num_layers] * size)
        x = self._decoder.embedding(torch.tensor(token_ids))
        rotation = self._decoder.rope.at_positions(torch.arange(size))
        visible = torch.ones(size, size, dtype=torch.bool).tril()
        visible[:, sorted(hidden_keys or ())] = False
        kv, maps = DenseKV([], []), []
        for layer in self._decoder.layers:
            normed = layer.attention_norm(x)
            heads = layer.attention.project(normed).unflatten(-1, (-1, config.head_dim))
            q, k, v = (x.clone() for x in heads.split([config.num_heads, *[config.num_kv_heads] * 2], dim=1))
            stale = depth_P < layer.index
            for start, old in reused or []:
                here = torch.zeros(size, dtype=torch.bool)
                here[start : start + len(old.keys[0])] = True
                here &= stale | (depth_P == 0)
                k[here] = old.keys[layer.index][here[start : start + len(old.keys[0])]]
                v[here] = old.values[layer.index][here[start : start + len(old.keys[0])]]
            kv.keys.append(k)
            kv.values.append(v)
            q = rotate(q, rotation)
            groups = config.num_heads // config.num_kv_heads
            k_H, v_H = rotate(k, rotation).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            scores = torch.einsum("phd,shd->hps", q, k_H) / config.head_dim**0.5
            attention = scores.masked_fill(~visible, float("-inf")).softmax(-1).nan_to_num()
            maps.append(attention.mean(0))
            out = torch.einsum("hps,shd->phd", attention, v_H).flatten(1)
            h = x + layer.attention.output(out)
            gate, up = layer.mlp.gate_up(layer.mlp_norm(h)).chunk(2, dim=-1)
            x = h + layer.mlp.down(torch.nn.functional.silu(gate) * up)
        return self._decoder.head(self._decoder.norm(x)), kv, maps
