"""A one-stage detector in the style of YOLOv8: C2f blocks, SPPF, a PAN neck, decoupled heads with a DFL."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )


class Bottleneck(nn.Module):
    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.reduce, self.expand, self.shortcut = conv(width, width, 3), conv(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.reduce(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Split in two, feed one half through bottlenecks, and join everything on the way."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool = True) -> None:
        super().__init__()
        self.half = outputs // 2
        self.enter = conv(inputs, 2 * self.half)
        self.leave = conv((2 + depth) * self.half, outputs)
        self.blocks = nn.ModuleList([Bottleneck(self.half, shortcut) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).split((self.half, self.half), 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Sppf(nn.Module):
    """Max pooling of growing size, by pooling again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = conv(width, width // 2), conv(width // 2 * 4, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.enter(x)
        second = self.pool(first)
        third = self.pool(second)
        return self.leave(torch.cat((first, second, third, self.pool(third)), 1))


class Head(nn.Module):
    """For each level boxes, as expectations over `bins` distances (the DFL), and class scores."""

    def __init__(self, widths: tuple[int, ...], classes: int, bins: int = 5) -> None:
        super().__init__()
        self.classes, self.bins = classes, bins
        self.boxes = nn.ModuleList(
            [nn.Sequential(conv(w, 12, 3), conv(12, 12, 3), nn.Conv2d(12, 4 * bins, 1)) for w in widths]
        )
        self.scores = nn.ModuleList([nn.Sequential(conv(w, 14, 3), nn.Conv2d(14, classes, 1)) for w in widths])
        self.dfl = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data[:] = torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        joined = [
            torch.cat((box(x), score(x)), 1) for box, score, x in zip(self.boxes, self.scores, levels, strict=True)
        ]
        flat = torch.cat([x.view(x.shape[0], 4 * self.bins + self.classes, -1) for x in joined], 2)
        boxes, scores = flat.split((4 * self.bins, self.classes), 1)
        batch, _, anchors = boxes.shape
        distances = boxes.view(batch, 4, self.bins, anchors).transpose(2, 1).softmax(1)
        return torch.cat((self.dfl(distances).view(batch, 4, anchors), scores.sigmoid()), 1)


class Yolo(nn.Module):
    """Three levels: backbone, top-down and bottom-up neck, heads. Output (n, 4 + classes, anchors)."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2), C2f(16, 16, 1))
        self.low = nn.Sequential(conv(16, 24, 3, 2), C2f(24, 24, 2))
        self.high = nn.Sequential(conv(24, 32, 3, 2), C2f(32, 32, 1), Sppf(32))
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.down_path = C2f(32 + 24, 24, 1, shortcut=False)
        self.to_stem = C2f(24 + 16, 16, 1, shortcut=False)
        self.to_low, self.out_low = conv(16, 16, 3, 2), C2f(16 + 24, 24, 1, shortcut=False)
        self.to_high, self.out_high = conv(24, 24, 3, 2), C2f(24 + 32, 32, 1, shortcut=False)
        self.head = Head((16, 24, 32), classes)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        low = self.low(stem)
        high = self.high(low)
        middle = self.down_path(torch.cat((self.up(high), low), 1))
        first = self.to_stem(torch.cat((self.up(middle), stem), 1))
        second = self.out_low(torch.cat((self.to_low(first), middle), 1))
        third = self.out_high(torch.cat((self.to_high(second), high), 1))
        return self.head([first, second, third])
