"""Two symmetric matrices of order n in one array (n, n + 1): a triangle each.

Row r holds the first matrix's columns 0 … r, then the second one's columns r … n − 1, one place to
the right. Half the memory of what Shampoo keeps, for one pass when it is read.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np


def _arrays(x: Any) -> Any:
    """NumPy for its arrays, where a host callback must not call JAX; JAX's otherwise."""
    return np if isinstance(x, np.ndarray) else jnp


def of_first(n: int) -> np.ndarray:
    """Where the first matrix lies, (n, n + 1)."""
    return np.arange(n + 1) <= np.arange(n)[:, None]


def _shaped(mask: np.ndarray, x: Any) -> np.ndarray:
    """A mask with the rank of `x`."""
    return mask.reshape(*[1] * (x.ndim - 2), *mask.shape)


def pack(first: Any, second: Any) -> Any:
    """(..., n, n) twice -> (..., n, n + 1)."""
    xp = _arrays(first)
    column = xp.zeros((*first.shape[:-1], 1), first.dtype)
    left, right = xp.concatenate([first, column], -1), xp.concatenate([column, second], -1)
    return xp.where(_shaped(of_first(first.shape[-1]), left), left, right)


def first(packed: Any) -> Any:
    """The first matrix, (..., n, n)."""
    return _mirrored(packed[..., :-1], np.tri(packed.shape[-2], dtype=bool))


def second(packed: Any) -> Any:
    """The second matrix, (..., n, n)."""
    return _mirrored(packed[..., 1:], np.tri(packed.shape[-2], dtype=bool).T)


def _mirrored(half: Any, mask: np.ndarray) -> Any:
    return _arrays(half).where(_shaped(mask, half), half, half.swapaxes(-1, -2))


def pack_pairs(matrices: Any) -> Any:
    """(count, n, n) -> (⌈count / 2⌉, n, n + 1), neighbours in one; an odd one out is doubled."""
    if len(matrices) % 2:
        matrices = _arrays(matrices).concatenate([matrices, matrices[-1:]])
    return pack(matrices[0::2], matrices[1::2])


def unpack_pairs(packed: Any, count: int) -> Any:
    """The inverse of `pack_pairs`, (count, n, n)."""
    n = packed.shape[-2]
    both = _arrays(packed).stack([first(packed), second(packed)], 1)  # (pairs, 2, n, n)
    return both.reshape(-1, n, n)[:count]
