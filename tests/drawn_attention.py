"""An observation made up by a test: attention of every row in every layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from agentkv_engine.reuse import Probe, Reading, Reread, ReuseView


@dataclass(slots=True)
class DrawnAttention:
    """Implements `Observation`; `attention_LPP` is [layers, rows, keys] over all prompt positions."""

    attention_LPP: torch.Tensor
    probes: tuple[Probe, ...] = ()
    stored: bool = True
    asked: list[int] = field(default_factory=list)

    @classmethod
    def at_random(cls, view: ReuseView, *probes: Probe, seed: int = 0, stored: bool = True) -> "DrawnAttention":
        """Each row's attention adds up to 1 over the keys before it and its own."""
        generator = torch.Generator().manual_seed(seed)
        size = view.num_tokens
        scores = torch.randn(view.num_layers, size, size, generator=generator)
        future = torch.ones(size, size, dtype=torch.bool).triu(1)
        return cls(scores.masked_fill(future, float("-inf")).softmax(-1), probes, stored)

    @classmethod
    def nothing(cls, view: ReuseView, *probes: Probe) -> "DrawnAttention":
        """Nobody reads anything: the test writes what it wants into `attention_LPP`."""
        return cls(torch.zeros(view.num_layers, view.num_tokens, view.num_tokens), probes)

    def attention(self, layer: int, positions: Sequence[int]) -> torch.Tensor:
        """See `Observation.attention`."""
        run = {position for probe in self.probes for position in probe.positions}
        assert self.stored or run.issuperset(positions), "these rows were not probed"
        self.asked += positions
        return self.attention_LPP[layer, list(positions)]

    def most_read(self, layer: int, positions: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Observation.most_read`."""
        padded_RP = torch.nn.functional.pad(self.attention_LPP[layer, list(positions)], (0, count))
        most = padded_RP.topk(count)
        return most.values, most.indices.clamp(max=self.attention_LPP.shape[-1] - 1)

    @property
    def traced_layers(self) -> tuple[int, ...]:
        """See `Observation.traced_layers`."""
        return tuple(range(len(self.attention_LPP))) if self.stored else ()

    def reading(self, layer: int, rereads: Sequence[Reread], chosen: torch.Tensor | None = None) -> Reading:
        """See `Observation.reading`: here, changes are attention paid to earlier rows, and to what is left out."""
        assert self.stored, "nothing is traced"
        since, without = [], []
        for reread in rereads:
            for position in reread.positions:
                paid_P = self.attention_LPP[layer, position]
                since.append(paid_P.sum() - paid_P[position])
                without.append(sum((paid_P[start:end].sum() for start, end in reread.left_out), torch.tensor(0.0)))
        rows = slice(None) if chosen is None else chosen
        return Reading(since_then_R=torch.stack(since)[rows], by_left_out_R=torch.stack(without)[rows])

    def value_deviation(self, layer: int, positions: Sequence[int]) -> torch.Tensor:
        """See `Observation.value_deviation`: here, what a row pays to itself."""
        return self.attention_LPP[layer].diagonal()[list(positions)]

    def value_turn(self, layer: int, positions: Sequence[int]) -> torch.Tensor:
        """See `Observation.value_turn`: here, the same as the deviation."""
        return self.value_deviation(layer, positions)
