"""Depthwise convolutions on maps smaller than their kernel, where torch's own gradient is slow on a CPU.

The gradient of a kernel of 5x5 on the last maps of an EfficientNet (2x2 to 4x4 at 64 to 128 pixels) takes oneDNN ten
times as long as a pass forward: it has no fast path for maps that don't cover the kernel. But that gradient is itself a
depthwise convolution, of each image's channel with the gradient of its output as the kernel, and forward they are fast
at every size but 1x1. `python benchmarks/training.py` measures both.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class SmallMapConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d` of stride 1 with a faster gradient where its map is smaller than its kernel."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Of a map of 1x1 the trick would make kernels of 1x1, for which there is no fast path forward either.
        small = 1 < min(input.shape[-2:]) < max(self.kernel_size)
        if not small or input.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return F.conv2d(input, weight, bias, padding=self.padding, groups=self.groups)
        output: Tensor = _SmallMap.apply(input, weight, self.padding)
        return output if bias is None else output + bias.view(-1, 1, 1)


def speed_up_depthwise(network: nn.Module) -> None:
    """Let the depthwise convolutions of `network` train faster on a CPU; its parameters and answers stay the same."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_meant(module):
            module.__class__ = SmallMapConv2d


def _is_meant(conv: nn.Conv2d) -> bool:
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and min(conv.kernel_size) > 3  # smaller kernels have a fast path on every map
        and set(conv.stride) == set(conv.dilation) == {1}
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


class _SmallMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.padding = padding
        return F.conv2d(images, weight, padding=padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        images, weight = ctx.saved_tensors
        (gradient,) = gradients
        for_images = for_weight = None
        if ctx.needs_input_grad[0]:
            for_images = conv2d_input(images.shape, weight, gradient, padding=ctx.padding, groups=len(weight))
        if ctx.needs_input_grad[1]:
            for_weight = _weight_gradient(images, gradient, ctx.padding)
        return for_images, for_weight, None


def _weight_gradient(images: Tensor, gradient: Tensor, padding: tuple[int, int]) -> Tensor:
    """Correlate each image's channel with the gradient of its output, and add up the images.

    Args:
        images: `[batch, channels, height, width]`.
        gradient: of the output, `[batch, channels, rows, columns]`.
        padding: zeros around each image.

    Returns:
        `[channels, 1, kernel height, kernel width]`.
    """
    batch, channels, rows, columns = gradient.shape
    # One image of batch x channels, in channels_last order, for which oneDNN's kernels are made.
    every = images.permute(2, 3, 0, 1).reshape(1, *images.shape[2:], -1).permute(0, 3, 1, 2)
    kernels = gradient.permute(2, 3, 0, 1).reshape(rows, columns, -1, 1).permute(2, 3, 0, 1)
    each = F.conv2d(every, kernels, padding=padding, groups=batch * channels)
    return each.view(batch, channels, *each.shape[2:]).sum(dim=0).unsqueeze(1)
