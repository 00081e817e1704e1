"""Leaf classes of torchvision that a source file carries itself, so that it needs torch alone.

Both are small, and importing torchvision for them costs seconds and fails where its compiled operators do not load.
The text is our own; what it computes is what the class of that name computes.
"""

from __future__ import annotations

_STOCHASTIC_DEPTH = '''\
class StochasticDepth(nn.Module):
    """In training, zero the input with probability p (each row of the batch, or all) and scale up what stays."""

    def __init__(self, p, mode):
        super().__init__()
        self.p = p
        self.mode = mode

    def forward(self, input):
        if not self.training or self.p == 0.0:
            return input
        shape = [input.shape[0] if self.mode == "row" else 1] + [1] * (input.dim() - 1)
        kept = torch.empty(shape, dtype=input.dtype, device=input.device).bernoulli_(1.0 - self.p)
        return input * (kept / (1.0 - self.p) if self.p < 1.0 else kept)
'''

_FROZEN_BATCH_NORM = '''\
class FrozenBatchNorm2d(nn.Module):
    """Batch norm over (N, C, H, W) with fixed statistics and fixed scale."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
'''

STANDALONE = {
    "torchvision.ops.stochastic_depth.StochasticDepth": _STOCHASTIC_DEPTH,
    "torchvision.ops.misc.FrozenBatchNorm2d": _FROZEN_BATCH_NORM,
}
