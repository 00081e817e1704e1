"""Networks in which channels gate, weigh, normalise or choose one another: gates, attention of convnets, statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny.table import Stem, of, tiny


@tiny("conv1 6")
class Glu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 12, 3), nn.Conv2d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.glu(self.conv1(x), dim=1))


@tiny("conv1 6")
class GatedByChunk(Glu):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = torch.chunk(self.conv1(x), 2, dim=1)
        return self.conv2(F.silu(gate) * value)


@tiny("conv1 6")
class MaxFeatureMap(Glu):
    """The larger of two halves (LightCNN)."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(self.conv1(x), 6, 1)
        return self.conv2(torch.max(first, second))


@tiny("conv1 6")
class ConcatenatedRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(12, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat([F.relu(x), F.relu(-x)], 1))


@tiny("conv1 8, down 4")
class SqueezeExcite(Stem):
    def setup(self) -> None:
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(F.relu(self.down(scale))))


@tiny("conv1 8, down 4")
class SqueezeExciteLinear(Stem):
    def setup(self) -> None:
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    def middle(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.size()
        scale = torch.sigmoid(self.up(F.relu(self.down(x.mean(dim=(2, 3))))))
        return x * scale.view(n, c, 1, 1).expand_as(x)


@tiny("more 6", why="moves over this axis")
class EfficientChannelAttention(Stem):
    """A convolution along the channels: their order and number mean something, and all stay."""

    def setup(self) -> None:
        self.along = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.more = nn.Conv2d(8, 6, 1)

    joined = 6

    def middle(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        y = self.along(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return F.relu(self.more(x * torch.sigmoid(y).expand_as(x)))


@tiny("conv1 8 mixed, mlp.0 4")
class Cbam(Stem):
    """Channel attention from mean and maximum over space, then spatial attention from both over channels."""

    def setup(self) -> None:
        self.mlp = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        self.spatial = nn.Conv2d(2, 1, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        gate = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        x = x * torch.sigmoid(gate)[:, :, None, None]
        maps = torch.cat([torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)], dim=1)
        return x * torch.sigmoid(self.spatial(maps))


@tiny("conv1 8, q 4, v 6")
class NonLocal(Stem):
    """Attention of every place to every place, on 1x1 convolutions."""

    def setup(self) -> None:
        self.q, self.k, self.v, self.o = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q = self.q(x).view(n, 4, -1).permute(0, 2, 1)
        k = self.k(x).view(n, 4, -1)
        v = self.v(x).view(n, 6, -1).permute(0, 2, 1)
        y = torch.matmul(F.softmax(torch.matmul(q, k), dim=-1), v)
        return x + self.o(y.permute(0, 2, 1).contiguous().view(n, 6, h, w))


@tiny("conv1 8, a 6, squeeze 4")
class SelectiveKernel(Stem):
    """Softmax over two branches, channel by channel."""

    def setup(self) -> None:
        self.a, self.b = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.squeeze, self.choose = nn.Linear(6, 4), nn.ModuleList(nn.Linear(4, 6) for _ in range(2))

    joined = 6

    def middle(self, x: Tensor) -> Tensor:
        feats = torch.stack([self.a(x), self.b(x)], dim=1)
        z = F.relu(self.squeeze(feats.sum(1).mean((-1, -2))))
        weights = torch.stack([fc(z) for fc in self.choose], dim=1).softmax(dim=1)
        return (feats * weights[..., None, None]).sum(dim=1)


@tiny("conv1 8, down.0 4")
class CoordinateAttention(Stem):
    def setup(self) -> None:
        self.down = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Hardswish())
        self.along_h, self.along_w = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        _, _, h, w = x.size()
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)
        rows, columns = torch.split(self.down(torch.cat([rows, columns], dim=2)), [h, w], dim=2)
        return x * self.along_w(columns.permute(0, 1, 3, 2)).sigmoid() * self.along_h(rows).sigmoid()


@tiny("", why="depends on the others")
class SoftmaxOverChannels(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return x * F.softmax(x, dim=1)


@tiny("", why="depends on the others")
class CumulativeSum(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, dim=1)


@tiny("", why="depends on the others")
class SortedChannels(Stem):
    def middle(self, x: Tensor) -> Tensor:
        return torch.sort(x, dim=1)[0]


@tiny("", why="chosen by value")
class TopChannels(Stem):
    joined = 3

    def middle(self, x: Tensor) -> Tensor:
        return torch.topk(x, 3, dim=1)[0]


@tiny("a 8, b 6 mixed")
class SumOverChannels(nn.Module):
    """The sum of rectified channels is zero where they are; after a sigmoid it is not, and the group is mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 6, 3), nn.Conv2d(2, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x)).sum(1, keepdim=True)
        b = torch.sigmoid(self.b(x)).sum(dim=1, keepdim=True)
        return self.head(torch.cat([a, b], 1))


@tiny("a 8 mixed")
class MeanOverChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x).mean(1, keepdim=True))


@tiny("a 8 mixed")
class Statistics(nn.Module):
    """Maximum, minimum, deviation, norm, product and log-sum-exp over channels, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        parts = [x.amax(1), x.min(dim=1).values, x.std(1), x.norm(dim=1), x.prod(1), x.logsumexp(1)]
        return self.head(torch.stack(parts, 1))


@tiny("conv1 8", why="computed as values")
class ArgmaxOutput(nn.Module):
    """The best channel is an answer of the model; the layers before stay free."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.conv1(x))).argmax(dim=1)


@tiny("fc1 8")
class UnitLength(nn.Module):
    """Features divided by their length: a zeroed one adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.normalize(self.fc1(x.mean((2, 3))), dim=-1))


@tiny("fc 8")
class CosineHead(nn.Module):
    """Similarity to learnt class vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.classes = nn.Linear(3, 8), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        features = self.fc(x.mean((2, 3)))
        return F.cosine_similarity(features[:, None], self.classes[None], dim=-1) + F.linear(
            F.normalize(features), F.normalize(self.classes)
        )


@tiny("fc 8")
class Distances(nn.Module):
    """Euclidean distance to prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.prototypes = nn.Linear(3, 8), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x.mean((2, 3)))
        return (x[:, None] - self.prototypes[None]).pow(2).sum(-1) + torch.cdist(x, self.prototypes)


@tiny("conv1 2, conv1#2 4 mixed")
class GroupNorm(Stem):
    def setup(self) -> None:
        self.norm = nn.GroupNorm(2, 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x)


@tiny("conv1 4 mixed, conv1#2 2 mixed")
class GroupNormOfOne(Stem):
    """Layer normalisation written as one group; and without affine parameters."""

    def setup(self) -> None:
        self.norm, self.plain = nn.GroupNorm(1, 8), nn.GroupNorm(4, 8, affine=False)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.plain(x)


@tiny("conv1 8")
class InstanceNorm(Stem):
    def setup(self) -> None:
        self.plain, self.affine = nn.InstanceNorm2d(8), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.affine(torch.relu(self.plain(x)))


@tiny("conv1 4, conv1#2 4")
class InstanceBatchNorm(Stem):
    """Half of the channels normalised by instance, half by batch (IBN-Net)."""

    def setup(self) -> None:
        self.a, self.b = nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4)

    def middle(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, 4, dim=1)
        return torch.cat((self.a(first.contiguous()), self.b(second.contiguous())), 1)


@tiny("conv1 8")
class BatchNormPlain(Stem):
    """Without affine parameters; and without running statistics."""

    def setup(self) -> None:
        self.a, self.b = nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8, track_running_stats=False)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@tiny("conv1 8 mixed")
class LayerNormOverImage(Stem):
    """Over channels and places together: the parameters are (8, 8, 8), and only channels can go."""

    def setup(self) -> None:
        self.norm = nn.LayerNorm([8, 8, 8])

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x)


@tiny("conv1 8 mixed, up 12")
class ConvNextBlock(Stem):
    def setup(self) -> None:
        self.depthwise, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        return x + self.scale * y


@tiny("conv1 8 mixed")
class GlobalResponseNorm(Stem):
    """ConvNeXt v2: the length of each channel divided by the mean length."""

    def setup(self) -> None:
        self.gamma, self.beta = nn.Parameter(torch.randn(1, 8, 1, 1)), nn.Parameter(torch.randn(1, 8, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        length = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        return self.gamma * (x * (length / (length.mean(dim=1, keepdim=True) + 1e-6))) + self.beta + x


@tiny("conv1 8 mixed")
class LayerNormByHand(Stem):
    def setup(self) -> None:
        self.weight, self.bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def middle(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


@tiny("more 6")
class LocalResponseNorm(Stem):
    def setup(self) -> None:
        self.norm, self.more = nn.LocalResponseNorm(3), nn.Conv2d(8, 6, 1)

    joined = 6

    def middle(self, x: Tensor) -> Tensor:
        return self.more(self.norm(x))


@tiny("conv1 8")
class PRelu(Stem):
    """One slope a channel, and one for all."""

    def setup(self) -> None:
        self.each, self.one = nn.PReLU(8), nn.PReLU()

    def middle(self, x: Tensor) -> Tensor:
        return self.one(self.each(x - 0.5) + 0.1)


@tiny("conv1 8")
class Where(Stem):
    def middle(self, x: Tensor) -> Tensor:
        x = x - 0.5
        return torch.where(x > 0, x, 0.1 * x) + x.masked_fill(x < 0.3, 1.0)


@tiny("conv1 8")
class Dropouts(Stem):
    def setup(self) -> None:
        self.a, self.b = nn.Dropout2d(0.5), nn.Dropout(0.5)

    def middle(self, x: Tensor) -> Tensor:
        return F.dropout(self.b(self.a(x)), 0.2, self.training)


@tiny("conv1 8")
class Interpolate(Stem):
    def middle(self, x: Tensor) -> Tensor:
        small = F.avg_pool2d(x, 2)
        smooth = F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return smooth + F.interpolate(small, scale_factor=2)


@tiny("conv1 8")
class PoolAndUnpool(Stem):
    """Maxima put back where they were found."""

    def middle(self, x: Tensor) -> Tensor:
        small, where = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(small, where, 2)


@tiny("conv1 8", of(2, 3, 9, 9))
class AdaptivePools(Stem):
    joined = 16

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([F.adaptive_avg_pool2d(x, (4, 5)), F.adaptive_max_pool2d(x, (4, 5))], 1)


@tiny("conv1 8")
class SpatialTransformer(Stem):
    """Places to read from are computed from all the channels."""

    def setup(self) -> None:
        self.where = nn.Linear(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        theta = self.where(x.mean((2, 3))).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, x.size(), align_corners=False), align_corners=False)
