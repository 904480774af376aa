"""The unified vocabulary (UPS section 3.2): action classes, coordinate bins and end-of-task tokens in one token space.

Every token is a text prompt; `text_features.py` turns prompts into frozen features. `Quantiser` turns coordinates into
bins and back. Token ids are laid out as

    [classes of all data sets, in the given order] [3 * n_bins coordinate bins: axis 0, 1, 2] [EOT of AR, PE, AP]

Legend: F frames, J joints, 3 axes, V vocabulary size, ... any leading shape.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # torch is imported where it is used, so that planning over vocabularies stays light
    import torch

AXES = ("horizontal", "vertical", "depth")
"""Wording of each coordinate axis. The paper words the first only; the other two are ours."""

EOT_PROMPTS = {
    "AR": "action recognition ends here",
    "PE": "pose estimation ends here",
    "AP": "action prediction ends here",
}
"""End-of-task prompts: AR serves 2D and 3D action recognition, PE 3D pose estimation, AP early action prediction."""

EotKind = Literal["AR", "PE", "AP"]


def class_prompt(dataset: str, name: str) -> str:
    """Prompt of one class, qualified by its data set.

    The paper prompts with the bare name, but seven names stand in both NTU RGB+D 120 and Kinetics-400: equal prompts
    give equal frozen features, hence tokens no model can tell apart.
    """
    return f"{name} ({dataset})"


def coordinate_prompt(axis: int, bin: int) -> str:
    """Prompt of a bin (from 0) of an axis: "The first horizontal coordinate", then "The 2-th ...", as in the paper."""
    ordinal = "first" if bin == 0 else f"{bin + 1}-th"
    return f"The {ordinal} {AXES[axis]} coordinate"


@dataclass(frozen=True)
class Vocabulary:
    """Token ids and prompts of all classes, coordinate bins and end-of-task tokens.

    Raises ValueError, listing every fault, for fewer than 2 bins, a data set named twice, a class without text, or a
    class named twice within one data set (letter case and spacing do not make two classes).
    """

    classes: tuple[tuple[str, tuple[str, ...]], ...]
    """(data set, class names) in token order; a class' place in its names is its label. May be empty (pose alone)."""
    n_bins: int
    """Bins per coordinate axis, at least 2."""

    def __post_init__(self) -> None:
        faults = _bin_faults(self.n_bins)
        for dataset, count in Counter(dataset for dataset, _ in self.classes).items():
            if count > 1:
                faults.append(f"each data set must appear once, got {dataset!r} {count} times; merge its classes")
        for dataset, names in self.classes:
            if not dataset.strip():
                faults.append(f"a data set must have a name, got {dataset!r}; it qualifies the class prompts")
            if not names:
                faults.append(f"data set {dataset!r} must have at least one class, got none; leave it out instead")
            for label, name in enumerate(names):
                if not name.strip():
                    faults.append(f"class {label} of {dataset!r} must have text, got {name!r}; its name is its prompt")
            counts = Counter(" ".join(name.casefold().split()) for name in names if name.strip())
            for name, count in counts.items():
                if count > 1:
                    faults.append(
                        f"class names must be distinct within a data set, got {name!r} {count} times in {dataset!r}; "
                        "rename one"
                    )
        if not faults:
            repeated = [prompt for prompt, count in Counter(self.prompts).items() if count > 1]
            if repeated:
                faults.append(f"prompts must be distinct, got {repeated[0]!r} more than once; rename that class")
        if faults:
            raise ValueError("; ".join(faults))

    @cached_property
    def _class_ranges(self) -> dict[str, range]:
        ranges, start = {}, 0
        for dataset, names in self.classes:
            ranges[dataset] = range(start, start + len(names))
            start += len(names)
        return ranges

    @property
    def n_classes(self) -> int:
        """Classes over all data sets, n_cls in the paper."""
        return sum(len(names) for _, names in self.classes)

    @property
    def size(self) -> int:
        """Number of tokens: n_cls + 3 * n_bins + 3."""
        return self.n_classes + 3 * self.n_bins + len(EOT_PROMPTS)

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of every token, by token id; all distinct."""
        classes = [class_prompt(dataset, name) for dataset, names in self.classes for name in names]
        coordinates = [coordinate_prompt(axis, bin) for axis in range(3) for bin in range(self.n_bins)]
        return (*classes, *coordinates, *EOT_PROMPTS.values())

    def class_ids(self, dataset: str) -> range:
        """Token ids of a data set's classes, in label order. ValueError for a data set it does not hold."""
        if dataset not in self._class_ranges:
            raise ValueError(_unknown("data set", dataset, self._class_ranges))
        return self._class_ranges[dataset]

    def coordinate_ids(self, axis: int) -> range:
        """Token ids of the bins of axis 0, 1 or 2, lowest coordinate first."""
        _check_axis(axis)
        start = self.n_classes + axis * self.n_bins
        return range(start, start + self.n_bins)

    def eot_id(self, kind: EotKind) -> int:
        """Token id that ends a sequence: "AR" action recognition, "PE" pose estimation, "AP" action prediction."""
        if kind not in EOT_PROMPTS:
            raise ValueError(_unknown("end-of-task token", kind, EOT_PROMPTS))
        return self.n_classes + 3 * self.n_bins + list(EOT_PROMPTS).index(kind)


class NonFiniteValues(ValueError):
    """NaN or infinite coordinates or scores: missing joints, or the output of a model whose training diverged."""


@dataclass(frozen=True)
class Quantiser:
    """Coordinates to bins and back, `n_bins` equal bins between `low` and `high` of each axis (UPS section 3.2).

    Bounds are in the unit of the coordinates. Methods take `axis` 0, 1 or 2, or None when the last dimension of the
    tensor is the three axes. They work on any device, in the tensor's precision (at least float32).
    Raises ValueError for fewer than 2 bins and for bounds that are not finite or not in order.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    n_bins: int

    def __post_init__(self) -> None:
        faults = _bin_faults(self.n_bins)
        if len(self.low) != 3 or len(self.high) != 3:
            faults.append(
                f"low and high must have one bound per axis, got {len(self.low)} and {len(self.high)}; give 3"
            )
        for axis, (low, high) in enumerate(zip(self.low, self.high, strict=False)):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                faults.append(f"low must be below high and both finite, got {low} and {high} on axis {axis}; refit")
        if faults:
            raise ValueError("; ".join(faults))

    @classmethod
    def fit(cls, coords_F3: Any, n_bins: int, margin: float = 0.05) -> Quantiser:
        """Quantiser over the range of training coordinates [..., 3], widened on each side by `margin` of the range."""
        import torch

        coords_F3 = torch.as_tensor(coords_F3).detach()
        _check_coordinates(coords_F3, None)
        if coords_F3.numel() == 0:
            raise ValueError(f"fit needs at least one point, got shape {tuple(coords_F3.shape)}; pass training poses")
        if not margin >= 0:
            raise ValueError(f"margin must be at least 0, got {margin}; 0.05 widens each side by 5 %")
        points_F3 = coords_F3.reshape(-1, 3).double()
        low_3, high_3 = points_F3.amin(0), points_F3.amax(0)
        pad_3 = margin * (high_3 - low_3)
        return cls(tuple((low_3 - pad_3).tolist()), tuple((high_3 + pad_3).tolist()), n_bins)

    def encode(self, x: torch.Tensor, axis: int | None = None) -> torch.Tensor:
        """Bin of each coordinate, int64 of the same shape, clamped to the first and last bin outside the range.

        Raises ValueError for coordinates that are not finite.
        """
        import torch

        x = _as_float(torch.as_tensor(x))
        _check_coordinates(x, axis)
        return self.bins_of(x, axis)

    def bins_of(self, x: torch.Tensor, axis: int | None = None) -> torch.Tensor:
        """`encode` without its checks, which wait for the device; what is not finite gets some bin."""
        low, high = self._bounds(x, axis)
        bins = ((x - low) / (high - low) * self.n_bins).floor_()
        return bins.nan_to_num_(0.0).clamp_(0, self.n_bins - 1).long()

    def decode(self, bins: torch.Tensor, axis: int | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Centre of each bin, `dtype` (float32 if None) of the same shape. Raises ValueError for a bin out of range."""
        import torch

        bins = torch.as_tensor(bins)
        if bins.dtype.is_floating_point or bins.dtype.is_complex or bins.dtype == torch.bool:
            raise ValueError(f"bins must be integers, got {bins.dtype}; encode makes them")
        _check_last_dimension(bins, axis)
        if bins.numel() and (int(bins.min()) < 0 or int(bins.max()) >= self.n_bins):
            raise ValueError(
                f"bins must lie in 0..{self.n_bins - 1}, got {int(bins.min())}..{int(bins.max())}; "
                "subtract the first token id of the axis"
            )
        return self._centre(bins.to(dtype or torch.float32), axis)

    def _centre(self, bins: torch.Tensor, axis: int | None) -> torch.Tensor:
        low, high = self._bounds(bins, axis)
        return low + (bins + 0.5) * ((high - low) / self.n_bins)

    def centres(self, axis: int, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Centres [n_bins] of the bins of one axis, e.g. for the expectation over an axis' bins (soft-argmax)."""
        import torch

        _check_axis(axis)
        return self._centre(torch.arange(self.n_bins, device=device, dtype=dtype or torch.float32), axis)

    def clip_rate(self, x: torch.Tensor, axis: int | None = None) -> float:
        """Share (0 to 1) of coordinates outside the range, which encode moves to the outermost bins."""
        import torch

        x = _as_float(torch.as_tensor(x))
        _check_coordinates(x, axis)
        if x.numel() == 0:
            raise ValueError(f"clip_rate needs at least one coordinate, got shape {tuple(x.shape)}")
        low, high = self._bounds(x, axis)
        return ((x < low) | (x > high)).double().mean().item()

    def floor_mm(self, pose_J3: torch.Tensor, *, mm_per_unit: float) -> float:
        """Mean distance in mm between points [..., 3] and their decoded bins: the MPJPE of a faultless arg-max decoder.

        Args:
            mm_per_unit: millimetres per unit of the coordinates, 1000 for metres.
        """
        import torch

        pose_J3 = _as_float(torch.as_tensor(pose_J3))
        decoded_J3 = self.decode(self.encode(pose_J3), dtype=pose_J3.dtype)
        if pose_J3.numel() == 0:
            raise ValueError(f"floor_mm needs at least one point, got shape {tuple(pose_J3.shape)}")
        return mm_per_unit * (decoded_J3 - pose_J3).norm(dim=-1).double().mean().item()

    def _bounds(self, x: torch.Tensor, axis: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Lower and upper bound, scalars for one axis and [3] for all, on the device and in the precision of `x`."""
        import torch

        if axis is not None:  # Filled on the device: a tensor copied there would be waited for.
            return x.new_full((), self.low[axis]), x.new_full((), self.high[axis])
        low, high = (torch.stack([x.new_full((), bound) for bound in bounds]) for bounds in (self.low, self.high))
        return low, high


def _as_float(x: torch.Tensor) -> torch.Tensor:
    """At least float32: half precision cannot place a coordinate in one of 500 bins."""
    import torch

    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _bin_faults(n_bins: int) -> list[str]:
    if n_bins < 2:
        return [f"n_bins must be at least 2, got n_bins={n_bins}; the default is 500"]
    return []


def _check_axis(axis: int) -> None:
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2 ({', '.join(AXES)}), got {axis!r}")


def _check_last_dimension(x: torch.Tensor, axis: int | None) -> None:
    if axis is not None:
        _check_axis(axis)
    elif x.ndim == 0 or x.shape[-1] != 3:
        raise ValueError(
            f"without axis the last dimension must be the 3 axes, got shape {tuple(x.shape)}; pass axis=0, 1 or 2"
        )


def _check_coordinates(x: torch.Tensor, axis: int | None) -> None:
    _check_last_dimension(x, axis)
    check_finite(x)


def check_finite(x: torch.Tensor) -> None:
    """Raise NonFiniteValues for coordinates that are not finite."""
    if not x.isfinite().all():
        bad = int((~x.isfinite()).sum())
        raise NonFiniteValues(
            f"coordinates must be finite, got {bad} of {x.numel()} that are not; mask missing joints first"
        )


def _unknown(what: str, value: object, names: Sequence[str] | dict[str, Any]) -> str:
    near = get_close_matches(str(value), list(names), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names) or 'none'}"
    return f"unknown {what} {value!r}; {hint}"
