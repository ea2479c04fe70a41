"""Weights of a feature network, read without running code and identified by content."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NEITHER = "or use no features: ~callbacks.quality in training, metrics=[nll] in evaluation"
"""Advice for when neither feature network is available."""


def load_weights(path: str | Path, remedy: str) -> dict[str, Any]:
    """Read a file written by torch.save onto the CPU; it may hold only tensors and plain Python values.

    Args:
        path: the file.
        remedy: what to do about a bad file, the end of the error message.

    Raises:
        ValueError: in one line, if the file is missing, truncated, or holds pickled objects, which are never run.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}; {remedy}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is not a readable weights file: it is truncated, has another format, or holds objects other "
            f"than tensors ({type(error).__name__}), which are rejected without being run; {remedy}"
        ) from error
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds a {type(weights).__name__} instead of a dict of weights; {remedy}")
    return weights


def weights_digest(state_dict: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 of names, types, shapes and bytes, for any file format."""
    sha = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
