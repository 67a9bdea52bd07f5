"""Layer lists of real networks: name -> shape of every weight that sparse training touches (no norms, no biases)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

__all__ = ["SHAPES", "Shape", "llama_1b", "llama_7b", "llama_70b", "resnet50", "resnet50_macs"]

Shape = tuple[int, ...]


def _resnet50_layers() -> Iterator[tuple[str, Shape, int]]:
    """(name, shape, output positions at 224 x 224 pixels); the stride of a bottleneck sits in its 3 x 3 convolution."""
    yield "conv1", (64, 3, 7, 7), 112**2
    wide, size = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        narrow = 64 << stage
        for block in range(blocks):
            name, before = f"layer{stage + 1}.{block}", size
            if block == 0 and stage > 0:
                size //= 2
            yield f"{name}.conv1", (narrow, wide, 1, 1), before**2
            yield f"{name}.conv2", (narrow, narrow, 3, 3), size**2
            yield f"{name}.conv3", (4 * narrow, narrow, 1, 1), size**2
            if block == 0:
                yield f"{name}.downsample.0", (4 * narrow, wide, 1, 1), size**2
            wide = 4 * narrow
    yield "fc", (1000, 2048), 1


def resnet50() -> dict[str, Shape]:
    """ResNet-50 for ImageNet: 53 convolutions and the classifier, 25,502,912 weights."""
    return {name: shape for name, shape, _ in _resnet50_layers()}


def resnet50_macs() -> dict[str, int]:
    """Multiply-accumulates of each layer of ResNet-50 for one image of 224 x 224 pixels; 4.09e9 in all."""
    return {name: math.prod(shape) * positions for name, shape, positions in _resnet50_layers()}


def vgg19() -> dict[str, Shape]:
    """VGG-19 for CIFAR-100: 16 convolutions and one classifier layer, 20,070,080 weights."""
    widths = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    convs = zip([3, *widths], widths, strict=False)
    return {f"conv{i}": (out, wide, 3, 3) for i, (wide, out) in enumerate(convs)} | {"fc": (100, 512)}


def mlp() -> dict[str, Shape]:
    """LeNet-300-100 for MNIST: 266,200 weights."""
    return {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}


def _transformer(blocks: int, linears: dict[str, Shape]) -> dict[str, Shape]:
    return {f"{block}.{name}": shape for block in range(blocks) for name, shape in linears.items()}


def vit_b() -> dict[str, Shape]:
    """ViT-B/16: patch projection, 12 blocks, head; 86,292,480 weights."""
    d = 768
    blocks = _transformer(12, {"qkv": (3 * d, d), "proj": (d, d), "fc1": (4 * d, d), "fc2": (d, 4 * d)})
    return {"patch": (d, 3, 16, 16), **blocks, "head": (1000, d)}


def gpt2() -> dict[str, Shape]:
    """GPT-2 small: the linear layers of 12 blocks, no embeddings; 84,934,656 weights."""
    d = 768
    return _transformer(12, {"attn": (3 * d, d), "proj": (d, d), "fc": (4 * d, d), "out": (d, 4 * d)})


def _llama(blocks: int, d: int, kv: int, wide: int) -> dict[str, Shape]:
    """The linear layers of all blocks, no embeddings."""
    linears: dict[str, Shape] = {
        "q": (d, d),
        "k": (kv, d),
        "v": (kv, d),
        "o": (d, d),
        "gate": (wide, d),
        "up": (wide, d),
        "down": (d, wide),
    }
    return _transformer(blocks, linears)


def llama_1b() -> dict[str, Shape]:
    """Llama 3.2 1B: the linear layers of 16 blocks, no embeddings; 973,078,528 weights."""
    return _llama(16, 2048, 512, 8192)


def llama_7b() -> dict[str, Shape]:
    """Llama 2 7B: the linear layers of 32 blocks, no embeddings; 6,476,005,376 weights."""
    return _llama(32, 4096, 4096, 11008)


def llama_70b() -> dict[str, Shape]:
    """Llama 2 70B: the linear layers of 80 blocks, no embeddings; 68,451,041,280 weights."""
    return _llama(80, 8192, 1024, 28672)


def eight_layers() -> dict[str, Shape]:
    """Eight equal layers, 100,000,000 weights: more than the caches of any GPU hold."""
    return {str(i): (5000, 2500) for i in range(8)}


SHAPES: dict[str, Callable[[], dict[str, Shape]]] = {
    "resnet50": resnet50, "vgg19": vgg19, "vit-b": vit_b, "gpt2": gpt2, "llama-1b": llama_1b, "mlp": mlp,
    "100m": eight_layers,
}  # fmt: skip
