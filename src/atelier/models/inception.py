"""Inception-v3 (arXiv 1512.00567) as FID reads it: the 2,048 pooled features of the 2015 TensorFlow weights.

Parameter names are torchvision's, which the file of FID's weights (``pt_inception-2015-12-05``) uses. It differs from
torchvision's network in three places, where TensorFlow's does: average pools leave the padding out, the last block
pools by the maximum, and there are 1,008 classes.
"""

import torch
from torch import Tensor, nn

FEATURES, CLASSES = 2048, 1008
SIDE = 299
"""What pictures are resized to."""

Size = int | tuple[int, int]


class _Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU; "same" padding where asked."""

    def __init__(self, inputs: int, outputs: int, size: Size, stride: int = 1, same: bool = False) -> None:
        super().__init__()
        high, wide = (size, size) if isinstance(size, int) else size
        padding = (high // 2, wide // 2) if same else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, (high, wide), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


def _average(x: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, 3, stride=1, padding=1)


def _halved(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, 3, stride=2)


class _BlockA(nn.Module):
    """35 × 35: 1×1, 5×5, twice 3×3, pool."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 64, 1)
        self.branch5x5_1 = _Conv(inputs, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, same=True)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, same=True)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, same=True)
        self.branch_pool = _Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        parts = [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_average(x))]
        return torch.cat(parts, 1)


class _BlockB(nn.Module):
    """35 × 35 to 17 × 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, same=True)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, _halved(x)], 1)


class _BlockC(nn.Module):
    """17 × 17: 7×7 taken apart into rows and columns, once and twice."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = _Conv(768, 192, 1)
        self.branch7x7_1 = _Conv(768, hidden, 1)
        self.branch7x7_2 = _Conv(hidden, hidden, row, same=True)
        self.branch7x7_3 = _Conv(hidden, 192, column, same=True)
        self.branch7x7dbl_1 = _Conv(768, hidden, 1)
        self.branch7x7dbl_2 = _Conv(hidden, hidden, column, same=True)
        self.branch7x7dbl_3 = _Conv(hidden, hidden, row, same=True)
        self.branch7x7dbl_4 = _Conv(hidden, hidden, column, same=True)
        self.branch7x7dbl_5 = _Conv(hidden, 192, row, same=True)
        self.branch_pool = _Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_average(x))], 1)


class _BlockD(nn.Module):
    """17 × 17 to 8 × 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(768, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(768, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7), same=True)
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), same=True)
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, _halved(x)], 1)


class _BlockE(nn.Module):
    """8 × 8: 3×3 as a row beside a column.

    Args:
        last: the last block, which pools by the maximum.
    """

    def __init__(self, inputs: int, last: bool = False) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.branch1x1 = _Conv(inputs, 320, 1)
        self.branch3x3_1 = _Conv(inputs, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, row, same=True)
        self.branch3x3_2b = _Conv(384, 384, column, same=True)
        self.branch3x3dbl_1 = _Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, same=True)
        self.branch3x3dbl_3a = _Conv(384, 384, row, same=True)
        self.branch3x3dbl_3b = _Conv(384, 384, column, same=True)
        self.branch_pool = _Conv(inputs, 192, 1)
        self.pool = _maximum if last else _average

    def forward(self, x: Tensor) -> Tensor:
        once, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [
            self.branch1x1(x),
            self.branch3x3_2a(once),
            self.branch3x3_2b(once),
            self.branch3x3dbl_3a(twice),
            self.branch3x3dbl_3b(twice),
            self.branch_pool(self.pool(x)),
        ]
        return torch.cat(parts, 1)


class FidInception(nn.Module):
    """Pictures float [B, 3, H, W] in [0, 1] → pooled features [B, 2048]; 24 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, same=True)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _BlockA(192, 32)
        self.Mixed_5c = _BlockA(256, 64)
        self.Mixed_5d = _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b = _BlockC(128)
        self.Mixed_6c = _BlockC(160)
        self.Mixed_6d = _BlockC(160)
        self.Mixed_6e = _BlockC(192)
        self.Mixed_7a = _BlockD()
        self.Mixed_7b = _BlockE(1280)
        self.Mixed_7c = _BlockE(2048, last=True)
        self.fc = nn.Linear(FEATURES, CLASSES)  # in the file, and not used

    def forward(self, pictures: Tensor) -> Tensor:
        x = _halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(inception_input(pictures)))))
        x = _halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


def inception_input(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] at 299 px in [-1, 1]: bilinear, pixels' centres kept, not smoothed before (as FID's)."""
    if pictures.shape[-2:] != (SIDE, SIDE):
        pictures = nn.functional.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2 * pictures - 1
