"""The decoder of `train_side.Shape` in plain PyTorch, and a step that trains it.

It has what makes PyTorch fast: one product for queries, keys and values, its fused attention, its
own norms, its fused AdamW. One step is forward, backward, clipping at 1.0 and AdamW.
"""

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from train_side import Shape, Step, serve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Attention(nn.Module):
    """Causal, with rotary positions where the shape is Llama's."""

    def __init__(self, shape: Shape):
        super().__init__()
        d, k = shape.width, shape.width // shape.heads
        self.heads, self.rotary = shape.heads, shape.llama
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        frequency = 10000.0 ** (-torch.arange(k // 2, dtype=torch.float64) / (k // 2))
        angle = torch.outer(torch.arange(shape.context, dtype=torch.float64), frequency)
        self.register_buffer("cos", angle.cos().float())
        self.register_buffer("sin", angle.sin().float())

    def forward(self, x: Tensor) -> Tensor:
        b, length, d = x.shape
        heads = self.qkv(x).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        if self.rotary:
            q, k = self.turned(q), self.turned(k)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, length, d))

    def turned(self, x: Tensor) -> Tensor:
        """Element i paired with i + k/2, as in Llama."""
        a, b = x.chunk(2, dim=-1)
        cos, sin = self.cos, self.sin
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class MLP(nn.Module):
    """GELU, or a gated SiLU."""

    def __init__(self, shape: Shape):
        super().__init__()
        d, m, self.gated = shape.width, shape.hidden, shape.llama
        self.gate = nn.Linear(d, m, bias=False)
        self.up = nn.Linear(d, m, bias=False) if shape.llama else None
        self.down = nn.Linear(m, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.up is None:
            return self.down(functional.gelu(self.gate(x)))
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def norm(shape: Shape) -> nn.Module:
    """RMSNorm, or LayerNorm without a bias."""
    if shape.llama:
        return nn.RMSNorm(shape.width, eps=1e-5)
    return nn.LayerNorm(shape.width, bias=False)


class Block(nn.Module):
    """Two residual sublayers, pre-norm."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.norm1, self.attention = norm(shape), Attention(shape)
        self.norm2, self.mlp = norm(shape), MLP(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Tokens and targets to the mean loss."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = None if shape.llama else nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.layers)])
        self.norm = norm(shape)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.embed.weight)
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def training(shape: Shape, dtype: str, compiled: bool) -> Step:
    """A step of the decoder; in bfloat16 by autocast."""
    model = Decoder(shape).to(DEVICE)
    decays = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1e-3, (0.9, 0.95), fused=True)
    call = torch.compile(model) if compiled else model
    data = [
        tuple(torch.as_tensor(t, dtype=torch.long, device=DEVICE) for t in batch)
        for batch in shape.batches()
    ]

    def step(i: int) -> float:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = call(*data[i % len(data)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def main() -> None:
    """Be a side."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    makers: dict[str, Callable[[Shape], Step]] = {
        f"{'compiled' if compiled else 'eager'} {dtype}": partial(
            training, dtype=dtype, compiled=compiled
        )
        for compiled in (False, True)
        for dtype in ("float32", "bfloat16")
    }
    serve(makers, {"torch": torch.__version__})
