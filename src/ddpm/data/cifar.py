"""Base of CIFAR-10 and CIFAR-100: pickled batches, which torchvision reads if their MD5 matches."""

import torch
from torch import Tensor
from torchvision.datasets.utils import check_integrity

from ddpm.data.torchvision_source import TorchvisionSource


class CIFAR(TorchvisionSource):
    """A data set in torchvision's CIFAR layout."""

    def _read(self, split: str) -> tuple[Tensor, Tensor] | None:
        folder, meta = self.root / self.dataset.base_folder, self.dataset.meta
        try:
            data = self.dataset(str(self.root), train=split == "train", download=False)
        except (RuntimeError, OSError):
            for name, md5 in (*self.dataset.train_list, *self.dataset.test_list, (meta["filename"], meta["md5"])):
                if (folder / name).exists() and not check_integrity(folder / name, md5):
                    raise ValueError(
                        f"{folder / name} is damaged (its MD5 differs from the published one); "
                        f"remove it, and {self._remedy()}"
                    ) from None
            return None
        return torch.as_tensor(data.data).permute(0, 3, 1, 2).contiguous(), torch.as_tensor(data.targets)
