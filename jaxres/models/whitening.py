"""The kernel of the whitening stem: what decorrelates the patches of images (Page 2019; Jordan 2024, airbench)."""

from typing import Any

import numpy as np

EPSILON = 5e-4  # added to the eigenvalues: directions with no variance are not blown up


def kernel(images: np.ndarray) -> np.ndarray:
  """Return the 2x2 filters that whiten, and their negatives.

  Args:
    images: normalised, float ``[N, H, W, C]``; some hundred are enough.

  Returns:
    float32 ``[2, 2, C, 8 * C]``: the eigenvectors of the patches' second moments, those of the least eigenvalues first,
    over the roots of these.
  """
  x = np.asarray(images, np.float64)
  height, width, channels = x.shape[1:]
  corners = [x[:, i : height - 1 + i, j : width - 1 + j] for i in (0, 1) for j in (0, 1)]
  patches = np.stack(corners, axis=-2).reshape(-1, 4 * channels)
  values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
  filters = (vectors / np.sqrt(values + EPSILON)).reshape(2, 2, channels, 4 * channels)
  return np.concatenate([filters, -filters], axis=-1).astype(np.float32)


def whiten(variables: dict[str, Any], images: np.ndarray) -> dict[str, Any]:
  """Return ``variables`` with the stem's kernel computed from ``images``."""
  conv = variables['params']['stem']['conv'] | {'kernel': kernel(images)}
  return variables | {'params': variables['params'] | {'stem': {'conv': conv}}}
