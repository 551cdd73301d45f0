"""Image and video discriminators for adversarial training of decoders."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.nn import Convolution, Linear, blur_pool, lecun_normal, parameter, zeros
from videogen.ranges import Count
from videogen.shapes import Video

Image = Float[Array, "batch height width channel"]

BLUR = np.array([1, 3, 3, 1], np.float32) / 8
SMALLEST_SIDE = 16


def convolve(
    x: Image, kernel: Float[Array, "rows columns inputs outputs"], *, stride: int = 1, padding: int = 0
) -> Image:
    """2-D convolution, ``padding`` zeros on every side, in the dtype of ``x``."""
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def blur(x: Image, *, padding: int, stride: int = 1) -> Image:
    """Separable [1, 3, 3, 1] low-pass filter, so that resampling does not alias; shifts and adds.

    Args:
      x: images.
      padding: zeros on every side; the output has ``side + 2·padding - 3`` places before the stride.
      stride: keeps every ``stride``-th place.
    """
    for axis in (1, 2):
        pad = [(padding, padding) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, pad)
        size = padded.shape[axis] - len(BLUR) + 1
        x = sum(
            jax.lax.slice_in_dim(padded, i, i + size, stride, axis) * jnp.asarray(tap, x.dtype)
            for i, tap in enumerate(BLUR)
        )
    return x


def activation(x: Image) -> Image:
    """Leaky ReLU whose gain keeps the variance."""
    return jax.nn.leaky_relu(x, 0.2) * math.sqrt(2)


def _check_size(shape: tuple[int, ...], height: int, width: int) -> None:
    if shape[-3:] != (height, width, 3):
        size = "×".join(map(str, shape[-3:]))
        raise UserError(f"the discriminator was built for frames of {height}×{width}×3, got {size}")


class Conv2D(nnx.Module):
    """Square convolution with float32 parameters, computed in ``dtype``; ``padding`` zeros on every side."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Count,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.stride, self.padding, self.dtype = stride, padding, dtype
        shape, axes = (size, size, inputs, outputs), (None, None, "embed", None)
        self.kernel = parameter(rngs, shape, axes, lecun_normal)
        self.bias = parameter(rngs, (outputs,), (None,), zeros) if bias else None

    def __call__(self, x: Image) -> Image:
        kernel = self.kernel.get_value()
        y = convolve(x.astype(self.dtype), kernel, stride=self.stride, padding=self.padding)
        return y if self.bias is None else y + self.bias.get_value().astype(self.dtype)


class ResidualBlock(nnx.Module):
    """Two 3×3 convolutions beside a 1×1 one; both paths halve the sides (rounding down) after a blur."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.first = Conv2D(inputs, inputs, 3, padding=1, dtype=dtype, rngs=rngs)
        self.second = Conv2D(inputs, outputs, 3, stride=2, dtype=dtype, rngs=rngs)
        self.skip = Conv2D(inputs, outputs, 1, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Image) -> Image:
        y = activation(self.second(blur(activation(self.first(x)), padding=2)))
        return (y + self.skip(blur(x, padding=1, stride=2))) * math.sqrt(0.5)


class StyleDiscriminator(nnx.Module):
    """Residual discriminator with blurred resampling (StyleGAN2; Karras et al., 2020).

    It has neither the equalised learning rate nor the minibatch statistics of the original: each image is
    judged on its own, as the gradient penalty assumes. For videos give it random frames, or all frames as a
    batch.

    Args:
      height: image height in pixels, at least 16; any size works, powers of two lose no border.
      width: image width in pixels, at least 16.
      channel_multiplier: widths are 16384·multiplier/side (64 at 256 pixels with multiplier 1) …
      maximum_channels: … but never more than this.
      dtype: dtype of the convolutions; parameters and logits are float32.
    """

    def __init__(
        self,
        height: int,
        width: Count,
        *,
        channel_multiplier: float = 1.0,
        maximum_channels: int = 512,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if min(height, width) < SMALLEST_SIDE:
            raise UserError(f"the discriminator needs sides of at least {SMALLEST_SIDE} pixels, got {height}×{width}")
        self.height, self.width = height, width

        def channels(side: int) -> int:
            power_of_two = 2 ** math.ceil(math.log2(side))
            return max(1, min(maximum_channels, round(16384 * channel_multiplier / power_of_two)))

        common = dict(dtype=dtype, rngs=rngs)
        outputs = channels(min(height, width))
        self.from_rgb = Conv2D(3, outputs, 1, **common)
        blocks = []
        while min(height, width) >= 8:
            height, width, inputs = height // 2, width // 2, outputs
            outputs = channels(min(height, width))
            blocks.append(ResidualBlock(inputs, outputs, **common))
        self.blocks = nnx.List(blocks)
        self.last = Conv2D(outputs, outputs, 3, padding=1, **common)
        self.hidden = Linear(height * width * outputs, outputs, axes=("embed", None), **common)
        self.logit = Linear(outputs, 1, axes=("embed", None), rngs=rngs)

    def __call__(self, images: Image) -> Float[Array, "batch"]:
        """Logits of images in [-1, 1]; high means real.

        Raises:
          UserError: the images have another size than the discriminator was built for.
        """
        _check_size(images.shape, self.height, self.width)
        x = activation(self.from_rgb(images))
        for block in self.blocks:
            x = block(x)
        x = activation(self.last(x))
        x = activation(self.hidden(x.reshape(x.shape[0], -1)))
        return self.logit(x.astype(jnp.float32))[:, 0]


class VideoBlock(nnx.Module):
    """Two 3×3×3 convolutions beside a 1×1×1 one; both paths halve time and sides (rounding up) after a blur."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(dtype=dtype, rngs=rngs)
        self.first = Convolution(inputs, outputs, padding="same", **common)
        self.second = Convolution(outputs, outputs, padding="same", **common)
        self.skip = Linear(inputs, outputs, bias=False, **common)

    def __call__(self, x: Video) -> Video:
        y = blur_pool(activation(self.first(x)), (2, 2, 2))
        return (activation(self.second(y)) + self.skip(blur_pool(x, (2, 2, 2)))) * math.sqrt(0.5)


class VideoDiscriminator(nnx.Module):
    """The 3-D residual discriminator of MAGVIT and MAGVIT-v2; it may look at all frames, so it is not causal.

    Features are averaged over time before the last layers, so that clips of any length and images (one-frame videos)
    are judged by the same weights; public code flattens time too, which ties it to one length.

    Args:
      height: frame height in pixels.
      width: frame width in pixels.
      channels: channels of the first convolution …
      multipliers: … times these give those of each block, which halves every axis.
      dtype: dtype of the convolutions; parameters and logits are float32.
    """

    def __init__(
        self,
        height: int,
        width: Count,
        *,
        channels: Count = 128,
        multipliers: Sequence[int] = (2, 4, 4, 4, 4),
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.height, self.width = height, width
        common = dict(dtype=dtype, rngs=rngs)
        widths = [channels, *(channels * m for m in multipliers)]
        self.input = Convolution(3, channels, padding="same", **common)
        pairs = zip(widths, widths[1:], strict=False)
        self.blocks = nnx.List([VideoBlock(inputs, outputs, **common) for inputs, outputs in pairs])
        self.last = Convolution(widths[-1], widths[-1], padding="same", **common)
        places = math.prod(-(-side // 2 ** len(multipliers)) for side in (height, width))
        self.hidden = Linear(places * widths[-1], widths[-1], axes=("embed", None), **common)
        self.logit = Linear(widths[-1], 1, axes=("embed", None), rngs=rngs)

    def __call__(self, video: Video) -> Float[Array, "batch"]:
        """One logit of each clip in [-1, 1]; high means real.

        Raises:
          UserError: the frames have another size than the discriminator was built for.
        """
        _check_size(video.shape, self.height, self.width)
        x = activation(self.input(video))
        for block in self.blocks:
            x = block(x)
        x = activation(self.last(x)).mean(1)
        x = activation(self.hidden(x.reshape(x.shape[0], -1)))
        return self.logit(x.astype(jnp.float32))[:, 0]
