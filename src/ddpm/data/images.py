"""The images of one split, held in memory or decoded from files on demand."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Images(Protocol):
    """What a source loads: N images of one shape with N labels."""

    labels: Tensor
    """Class of each image, int64, shape (N,); zeros when the source has no classes."""

    def __len__(self) -> int:
        """N."""
        ...

    def pixels(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Grey levels of the chosen images, uint8, shape (B, C, H, W), in the order of indices."""
        ...

    def digest(self) -> str:
        """64 hexadecimal digits that change with the content: a cache key."""
        ...


def fingerprint(images: Images) -> dict[str, Any]:
    """The record of images that a checkpoint stores, to compare other images with."""
    return {"n": len(images), "of": type(images).__name__, "sha256": images.digest()}


def same(before: Any, here: Any) -> bool | None:
    """Whether two fingerprints match; None if one is missing, or one is of pixels and the other of files."""
    if before and before["n"] == here["n"] and before["of"] != here["of"]:
        return None
    return bool(before == here) if before else None


def not_compared(split: str) -> str:
    """The message for when `same` returns None."""
    return f"the checkpoint has no digest of its {split} images to compare these with"


def _as_labels(labels: Tensor, n: int) -> Tensor:
    if labels.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), one for each image, got {tuple(labels.shape)}")
    return labels.to(torch.int64)


class InMemory:
    """Images held as one tensor.

    Args:
        pixels: grey levels, uint8, shape (N, C, H, W).
        labels: integers, shape (N,).
    """

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ValueError(f"pixels must be uint8 of shape (N, C, H, W), got {pixels.dtype} of {tuple(pixels.shape)}")
        self._pixels = pixels.contiguous()
        self.labels = _as_labels(labels, len(pixels))

    def __len__(self) -> int:
        return len(self._pixels)

    def pixels(self, indices: Tensor | Sequence[int]) -> Tensor:
        """uint8 (B, C, H, W), a copy."""
        return self._pixels[torch.as_tensor(indices, dtype=torch.int64)]

    def digest(self) -> str:
        """SHA-256 of shape, labels and pixels."""
        content = hashlib.sha256(str(tuple(self._pixels.shape)).encode())
        content.update(self.labels.numpy().tobytes())
        content.update(self._pixels.numpy().data)
        return content.hexdigest()


class OnDisk:
    """Images decoded from their files on every call, for folders larger than memory.

    Args:
        root: the folder that the names are relative to.
        names: names of N files.
        labels: integers, shape (N,).
        decode: path -> uint8 (C, H, W); its repr must state every setting, for the digest.
    """

    def __init__(self, root: Path, names: Sequence[str], labels: Tensor, decode: Callable[[Path], Tensor]) -> None:
        self._root = root
        self._names = tuple(names)
        self._decode = decode
        self.labels = _as_labels(labels, len(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def pixels(self, indices: Tensor | Sequence[int]) -> Tensor:
        """uint8 (B, C, H, W)."""
        chosen = torch.as_tensor(indices, dtype=torch.int64).tolist()
        return torch.stack([self._decode(self._root / self._names[i]) for i in chosen])

    def digest(self) -> str:
        """SHA-256 of the settings, the labels, and each file's name below root, size and modification time."""
        content = hashlib.sha256(repr(self._decode).encode())
        content.update(self.labels.numpy().tobytes())
        for name in self._names:
            state = (self._root / name).stat()
            content.update(name.encode("utf-8", "surrogateescape"))
            content.update(f"\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        return content.hexdigest()
