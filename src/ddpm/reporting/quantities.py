"""What the numbers of a run mean: what to print for them, which way is better, and when they can be compared."""

from dataclasses import dataclass

OBJECTIVE = ("loss", "data", "conditioning", "parameterization", "schedule")
BOUND = ("loss", "data", "conditioning")
SAMPLES = ("data", "callbacks.quality.features", "callbacks.quality.n_samples", "callbacks.quality.inception_weights")


@dataclass(frozen=True)
class Quantity:
    """A kind of number.

    Attributes:
        label: what to print.
        better: 1 where more is better, -1 where less is; 0 where neither is, or it is not known.
        main: whether it is shown without being asked for.
        same: prefixes of options that runs must share for the numbers to be comparable.
        n: name of the number of images behind it.
    """

    label: str
    better: int = 0
    main: bool = False
    same: tuple[str, ...] = ()
    n: str | None = None


def _of_samples(label: str, better: int = 0, main: bool = False) -> Quantity:
    return Quantity(label, better, main, SAMPLES, "samples_n")


def _of_images(label: str, better: int = 0, main: bool = False) -> Quantity:
    return Quantity(label, better, main, ("data",), "bits_per_dim_n")


QUANTITIES = {
    "fid": _of_samples("FID", -1, True),
    "bits_per_dim": _of_images("bits/dim", -1, True),
    "is_mean": _of_samples("IS", 1, True),
    "kid_mean": _of_samples("KID", -1, True),
    "precision": _of_samples("precision", 1, True),
    "recall": _of_samples("recall", 1, True),
    "accuracy": _of_samples("accuracy", 1, True),
    "fid_class_mean": _of_samples("FID of one class, mean", -1, True),
    "val/loss": Quantity("validation loss", -1, True, OBJECTIVE),
    "train/loss": Quantity("training loss", -1, True, OBJECTIVE),
    "images_per_second": Quantity("training images/s", 1, True),
    "seconds": Quantity("training time (s)", 0, True),
    "fid_floor": _of_samples("FID floor"),
    "is_std": _of_samples("IS, deviation over splits"),
    "kid_std": _of_samples("KID, deviation over subsets"),
    "prior": _of_images("prior L_T (bits/dim)"),
    "rate": _of_images("rate (bits/dim)"),
    "distortion": _of_images("distortion (bits/dim)"),
    "rmse": _of_images("RMSE of x^_0 at t = 1 (0..255)"),
    "standard_error": _of_images("bits/dim, error over images"),
    "standard_error_times": _of_images("bits/dim, error due to the times"),
    **{f"train/loss_q{i}": Quantity(f"training loss, quartile {i} of t", 0, same=OBJECTIVE) for i in range(1, 5)},
    "train/gradient_norm": Quantity("gradient norm"),
    "train/learning_rate": Quantity("learning rate"),
}
"""By name, in the order of the columns."""
COUNTS = {"step", "samples_n", "bits_per_dim_n", "fid_n", "fid_floor_n", "epoch", "kid_subset_size"}
"""What belongs to other numbers, and is no result."""


def quantity(name: str) -> Quantity:
    """The quantity of this name; an unknown one is a result whose direction is not known."""
    return QUANTITIES.get(name) or Quantity(name, main=True)
