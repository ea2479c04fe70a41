"""Any folder of images of any mode and size, with or without class subfolders or a split."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeVar

import torch
from tqdm import tqdm

from ddpm.data.decode import SUFFIXES, Decode
from ddpm.data.images import Images, InMemory, OnDisk
from ddpm.data.source import Source, check_split
from ddpm.data.tree import account, images_below
from ddpm.support.text import natural, printable

_T = TypeVar("_T")

TEST_NAMES = ("test", "val", "valid", "validation")
"""Names of the test split's folder, next to train; the first one found is used."""


def _in_test(name: str, fraction: float) -> bool:
    """Whether a file is a test image, decided by a hash of its relative name."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]) < fraction * 2**64


def _each(function: Callable[[Path], _T], files: Sequence[Path], what: str) -> Iterator[_T]:
    """Apply a function to every file in threads; results come in order, with a progress bar."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from tqdm(pool.map(function, files), what, len(files), unit="image", leave=False)


class ImageFolder(Source):
    """Images below root, cropped to squares and resized as described in ddpm.data.decode.

    If root holds the folders train and test, these are the splits, and everything else in root is left out. The test
    folder may also be called val, valid or validation; case does not matter. Otherwise a hash of each file's name
    relative to root decides its split, so adding files moves no other file. Subfolders (of each split) are classes, in
    the natural order of their names (2 before 10). If any image is next to them, there are no classes and every label
    is 0. Links are followed.

    Args:
        root: the folder of images.
        image_size: H = W of the result, in pixels.
        channels: 1 (grey) or 3 (colour).
        flip: mirror training images at random.
        test_fraction: expected fraction of test images, in (0, 1); unused with folders train and test.
        memory_gb: decode both splits into memory once if they take at most this many 10^9 bytes; otherwise decode
            every batch from its files.
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
            raise ValueError(f"test_fraction must be in (0, 1), got {test_fraction}; 0.1 is typical")
        if memory_gb < 0:
            raise ValueError(f"memory_gb must be at least 0, got {memory_gb}; 0 decodes every batch from its files")
        self.root = Path(root).expanduser()
        self.shape = (channels, image_size, image_size)
        self.test_fraction = test_fraction
        self.memory_gb = memory_gb

    @cached_property
    def _folders(self) -> dict[str, str]:
        """Split -> its folder in root; empty if root has no folders for the splits."""
        if not self.root.is_dir():
            raise ValueError(f"there is no folder {printable(self.root)}; set root to the folder that holds the images")
        named = {path.name.lower(): path.name for path in sorted(self.root.iterdir()) if path.is_dir()}
        test = [named[name] for name in TEST_NAMES if name in named]
        return {"train": named["train"], "test": test[0]} if test and "train" in named else {}

    @cached_property
    def _found(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Split -> its files, and kind -> what is left out, both as names relative to root."""
        files: dict[str, list[str]] = {}
        left_out: dict[str, list[str]] = {}
        for split, top in (self._folders or {"all": ""}).items():
            files[split], left = images_below(self.root / top)
            for kind, names in left.items():
                left_out.setdefault(kind, []).extend(str(PurePosixPath(top, name)) for name in names)
            if not files[split]:
                there = f"; found only {account(left)}" if left else ""
                raise ValueError(
                    f"there are no images in {printable(self.root / top)}; put {' '.join(SUFFIXES)} files there{there}"
                )
        if self._folders:
            files = {split: [f"{self._folders[split]}/{name}" for name in names] for split, names in files.items()}
            beside = {path.name for path in self.root.iterdir()} - {*self._folders.values()}
            if beside:
                left_out["outside the splits"] = sorted(beside)
            return files, left_out
        files = {
            split: [name for name in files["all"] if _in_test(name, self.test_fraction) == (split == "test")]
            for split in ("train", "test")
        }
        for split, chosen in files.items():
            if not chosen:
                raise ValueError(
                    f"test_fraction={self.test_fraction} leaves no {split} image in {printable(self.root)};"
                    " add images, change test_fraction, or create the folders train and test"
                )
        return files, left_out

    def _class_of(self, name: str) -> str | None:
        """The first folder below root (or the split's folder); None if the file is directly in it."""
        folders = name.split("/")[1 if self._folders else 0 : -1]
        return folders[0] if folders else None

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Class folder -> its label; empty if an image is next to them."""
        names = {self._class_of(name) for files in self._found[0].values() for name in files}
        return {} if None in names else {name: i for i, name in enumerate(sorted(filter(None, names), key=natural))}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders, in natural order; empty if an image is next to them."""
        for name in self._numbers:
            if "${" in name:
                raise ValueError(f"rename the class folder {printable(name)}: ${{ starts an interpolation")
        return tuple(map(printable, self._numbers))

    @property
    def notes(self) -> tuple[str, ...]:
        """Which folders are the splits, what was left out, and why there are no classes."""
        files, left_out = self._found
        names = [name for split in files.values() for name in split]
        beside = [name for name in names if self._class_of(name) is None]
        notes = []
        if self._folders:
            train, test = (f"{printable(name)}/" for name in self._folders.values())
            notes.append(f"{train} is the training split, {test} the test split")
        if left_out:
            notes.append(f"left out: {account(left_out)}")
        if 0 < len(beside) < len(names):
            beside_classes = account({"images next to the folders": beside})
            notes.append(f"there are no classes, because of {beside_classes}")
        return tuple(notes)

    def load(self, split: str) -> Images:
        """The split, InMemory if both splits fit into memory_gb, else OnDisk; ValueError names an unusable file."""
        check_split(split)
        names = self._found[0][split]
        labels = torch.tensor([self._numbers.get(self._class_of(name) or "", 0) for name in names])
        files = [self.root / name for name in names]
        channels, size, _ = self.shape
        decode = Decode(size, channels)
        total = sum(map(len, self._found[0].values()))
        if total * channels * size * size > self.memory_gb * 1e9:
            for _ in _each(decode.check, files, f"checking {split} images"):
                pass
            return OnDisk(self.root, names, labels, decode)
        pixels = torch.empty(len(files), *self.shape, dtype=torch.uint8)
        for i, image in enumerate(_each(decode, files, f"decoding {split} images")):
            pixels[i] = image
        return InMemory(pixels, labels)
