"""Points of private set intersection as tensors, and which of them all clients have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

POINT_BYTES = 32


def common_places(points: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return, for each client, the places of those of its points that all clients have, int64."""
    lists = {name: unpacked(point) for name, point in points.items()}
    shared = set.intersection(*(set(coded) for coded in lists.values()))
    return {
        name: torch.tensor([place for place, point in enumerate(coded) if point in shared], dtype=torch.int64)
        for name, coded in lists.items()
    }


def packed(points: Sequence[bytes]) -> torch.Tensor:
    """Return encoded points as one tensor, uint8 (N, 32)."""
    return torch.from_numpy(np.frombuffer(b"".join(points), dtype=np.uint8).reshape(-1, POINT_BYTES).copy())


def unpacked(points: torch.Tensor) -> list[bytes]:
    """Return the encoded points of a tensor, uint8 (N, 32)."""
    data = points.contiguous().numpy().tobytes()
    return [data[start : start + POINT_BYTES] for start in range(0, len(data), POINT_BYTES)]
