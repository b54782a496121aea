"""Small networks, each with one thing that makes hooking hard."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Reused(nn.Module):
    """One in-place ReLU and one convolution, both called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        return self.relu(self.conv(self.conv(x)))


class InsideOut(nn.Module):
    """Convolution, norm, and an in-place functional activation inside the module that returns it."""

    def __init__(self, activation: str = "relu", channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        match self.activation:
            case "relu":
                return F.relu(x, inplace=True)
            case "swish":
                return x * torch.sigmoid(x)
            case "hard swish":
                return x * F.relu6(x + 3) / 6
            case "clamp":
                return x.clamp_(min=0)
        return x


class Branches(nn.Module):
    """Two branches, each an `InsideOut`, one after a pooling, joined; then a convolution and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.left = InsideOut()
        self.right = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), InsideOut())
        self.last = nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.left(x), self.right(x)], 1)).flatten(1)


class Preactivated(nn.Module):
    """Norm and activation come before the convolution; a second reader of the convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.conv(self.relu(self.norm(x)))


class WrittenOutNorm(nn.Module):
    """A layer norm over channels in plain arithmetic, as ConvNeXt's own code has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 1, 1))
        self.bias = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.bias


class Odd(nn.Module):
    """Modules that return a tuple, integers, a dict, nothing of the image, or never run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU()
        self.pair = Apply(lambda x: (x + 1, x.mean()))
        self.integers = Apply(lambda x: x.argmax(1))
        self.mapping = Apply(lambda x: {"x": x})
        self.constant = Apply(lambda x: torch.ones(2, 4))
        self.split = Apply(lambda x: x.flatten(0, 1))
        self.cubes = Apply(lambda x: x[:, :, None])
        self.auxiliary = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        for module in (self.integers, self.mapping, self.constant, self.split, self.cubes):
            module(x)
        x, _ = self.pair(x)
        return self.auxiliary(x) if self.training else x


class Apply(nn.Module):
    """A module that applies a function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: Tensor) -> object:
        return self.function(*x)  # type: ignore[operator]


class TokenBlock(nn.Module):
    """Attention and a residual addition over tokens [N, T, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


class Tokens(nn.Module):
    """A vision transformer: patches, `prefix` extra tokens in front, blocks, a head on the first token."""

    def __init__(self, prefix: int = 1, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.extra = nn.Parameter(torch.rand(1, prefix, width))
        self.blocks = nn.ModuleList(TokenBlock(width) for _ in range(3))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.extra.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


class Windows(nn.Module):
    """Channels-last maps cut into windows of 4 x 4, each run through a linear layer as if it were an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.inner = nn.Linear(6, 6)
        self.mixed = Apply(self.mix)
        self.outer = nn.Linear(6, 7)

    def mix(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        x = self.inner(x).view(n, h // 4, w // 4, 4, 4, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.mixed(self.conv(x).permute(0, 2, 3, 1)))
