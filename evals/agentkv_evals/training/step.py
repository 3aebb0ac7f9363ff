"""One training step: loss, gradients, clipping, AdamW, captured as one CUDA graph for each batch shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from agentkv_evals.training.encode import WEIGHTS
from agentkv_evals.training.model import Decoder

WARM_UP_STEPS = 3


def token_loss(logits_ND: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
    """Cross-entropy per token, weighted, divided by the sum of the weights."""
    losses = F.cross_entropy(logits_ND.float(), targets_N, reduction="none")
    return (losses * weights_N).sum() / weights_N.sum().clamp_min(1.0)


def make_optimizer(model: Decoder, device: str) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.95; matrices decay by 0.01, vectors not at all; the rate is a tensor."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    cuda = device.startswith("cuda")
    rate = torch.zeros((), device=device) if cuda else 0.0
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True, capturable=cuda)


class Stepper:
    """Runs steps of any batch shape; on a GPU every shape is captured once and then replayed."""

    def __init__(self, model: Decoder, device: str) -> None:
        self.model, self.device = model, device
        self.dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self.optimizer = make_optimizer(model, device)
        self.loss = torch.zeros((), device=device)
        self._weights = torch.tensor(WEIGHTS, device=device)
        self._graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._loss_of: Callable[[Tensor, Tensor, Tensor], Tensor] = token_loss

    def compile(self) -> None:
        """Fuse the blocks and the loss with torch.compile (once per batch shape)."""
        for layer in self.model.layers:
            layer.compile(dynamic=False)
        self._loss_of = torch.compile(token_loss, dynamic=False)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the following steps."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _eager(self, batch: Tensor) -> None:
        ids, classes = batch[0], batch[1]
        hidden = self.model.hidden(ids[:, :-1], self.dtype)
        logits = F.linear(hidden, self.model.embed_tokens.weight.to(self.dtype))
        loss = self._loss_of(logits.flatten(0, 1), ids[:, 1:].reshape(-1), self._weights[classes[:, 1:]].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.loss.copy_(loss.detach())

    def __call__(self, batch: Tensor) -> None:
        """One step on [2, rows, tokens + 1]; `self.loss` holds its loss afterwards, on the device."""
        if not self.device.startswith("cuda"):
            self._eager(batch)
            return
        shape = tuple(batch.shape)
        if shape not in self._graphs:
            self._capture(batch)
        graph, buffer = self._graphs[shape]
        buffer.copy_(batch)
        graph.replay()

    def _capture(self, batch: Tensor) -> None:
        """Warm up on a side stream, then capture; the warm-up steps are real steps."""
        buffer = batch.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                self._eager(buffer)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._eager(buffer)
        self._graphs[tuple(batch.shape)] = (graph, buffer)
