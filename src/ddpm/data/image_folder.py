"""Any folder of images: of any mode and size, with or without class subfolders, with or without a split."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.data.decode import Decode
from ddpm.data.images import Images, InMemory, OnDisk
from ddpm.data.source import Source, check_split

_T = TypeVar("_T")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


def _images_under(folder: Path) -> list[Path]:
    """Image files below folder, sorted; names that begin with a dot are left out."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; set root to the folder that holds the images")
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    visible = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    if not visible:
        raise ValueError(f"there are no images in {folder}; put {' '.join(SUFFIXES)} files there")
    return [folder / path for path in sorted(visible, key=Path.as_posix)]


def _in_test(name: str, fraction: float) -> bool:
    """Whether the file of this relative name is a test image: a hash of the name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < fraction * 2**64


def _each(function: Callable[[Path], _T], files: Sequence[Path], what: str) -> Iterator[_T]:
    """function of every file, in order, by threads, with a progress bar."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from tqdm(pool.map(function, files), what, len(files), unit="image", leave=False)


class ImageFolder(Source):
    """Images below root, cut to squares and resized (the rule is in ddpm.data.decode).

    If root holds the folders train and test, these are the splits, and all else in root is left out.
    Otherwise a file belongs to the test split if a hash of its name relative to root says so: adding files
    moves no other file. Subfolders (of each split) are classes, in the order of their names, unless an image
    lies directly beside them; then there are no classes and every label is 0.

    Args:
        root: the folder.
        image_size: H = W of the result, pixels.
        channels: 1 (grey) or 3 (colour).
        flip: mirror training images at random.
        test_fraction: expected part of the images in the test split, in (0, 1); not used with train and test.
        memory_gb: both splits are decoded into memory once if they take at most this many 10^9 bytes;
            otherwise every batch is decoded from its files.
    """

    def __init__(
        self,
        root: str,
        image_size: int,
        channels: int = 3,
        flip: bool = False,
        test_fraction: float = 0.1,
        memory_gb: float = 8.0,
    ) -> None:
        super().__init__(flip)
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must be in (0, 1), got {test_fraction}; 0.1 is usual")
        if memory_gb < 0:
            raise ValueError(f"memory_gb must be at least 0, got {memory_gb}; 0 decodes every batch anew")
        self.root = Path(root).expanduser()
        self.shape = (channels, image_size, image_size)
        self.test_fraction = test_fraction
        self.memory_gb = memory_gb

    @cached_property
    def _has_split(self) -> bool:
        return (self.root / "train").is_dir() and (self.root / "test").is_dir()

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        if self._has_split:
            return {split: _images_under(self.root / split) for split in ("train", "test")}
        files: dict[str, list[Path]] = {"train": [], "test": []}
        for file in _images_under(self.root):
            name = file.relative_to(self.root).as_posix()
            files["test" if _in_test(name, self.test_fraction) else "train"].append(file)
        for split, chosen in files.items():
            if not chosen:
                raise ValueError(
                    f"test_fraction={self.test_fraction} leaves no {split} image in {self.root};"
                    " add images, change test_fraction, or make the folders train and test"
                )
        return files

    def _class_of(self, file: Path, split: str) -> str | None:
        """The first folder below root (or root/split); None if the file lies directly there."""
        parts = file.relative_to(self.root / split if self._has_split else self.root).parts
        return parts[0] if len(parts) > 1 else None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Sorted names of the class folders; empty if an image lies beside them."""
        names = {self._class_of(file, split) for split, files in self._files.items() for file in files}
        return () if None in names else tuple(sorted(name for name in names if name is not None))

    def _labels(self, split: str) -> Tensor:
        number = {name: label for label, name in enumerate(self.classes)}
        return torch.tensor([number.get(self._class_of(file, split) or "", 0) for file in self._files[split]])

    def load(self, split: str) -> Images:
        """InMemory if both splits fit into memory_gb, else OnDisk; ValueError names a file that is unfit."""
        check_split(split)
        files, labels = self._files[split], self._labels(split)
        channels, size, _ = self.shape
        decode = Decode(size, channels)
        total = sum(map(len, self._files.values()))
        if total * channels * size * size > self.memory_gb * 1e9:
            for _ in _each(decode.check, files, f"checking {split} images"):
                pass
            return OnDisk(files, labels, decode)
        pixels = torch.empty(len(files), *self.shape, dtype=torch.uint8)
        for i, image in enumerate(_each(decode, files, f"decoding {split} images")):
            pixels[i] = image
        return InMemory(pixels, labels)
