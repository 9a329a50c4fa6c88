"""Two symmetric matrices in one array: nothing is lost, in NumPy and in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import slow
from optax_zoo import _triangles

KINDS = pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])


def symmetric(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(*shape, shape[-1])).astype(dtype)
    return x + x.swapaxes(-1, -2)


def test_the_first_lies_below_the_second_above():
    first, second = np.full((2, 2), 1.0), np.full((2, 2), 2.0)
    np.testing.assert_array_equal(_triangles.pack(first, second), [[1, 2, 2], [1, 1, 2]])
    np.testing.assert_array_equal(_triangles.of_first(2), [[1, 0, 0], [1, 1, 0]])


@KINDS
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), *slow(((1,),), ((2,),), ((3, 4),))])
def test_unpacking_is_the_inverse_of_packing(convert, shape):
    first, second = symmetric(*shape), symmetric(*shape, seed=1)
    packed = _triangles.pack(convert(first), convert(second))
    assert packed.shape == (*shape, shape[-1] + 1)
    assert type(packed) is type(convert(first))
    for found, given in ((_triangles.first(packed), first), (_triangles.second(packed), second)):
        assert type(found) is type(packed)
        np.testing.assert_array_equal(found, given, strict=True)


@KINDS
@pytest.mark.parametrize("count", [2, 3, *slow(1, 6, 7)])
def test_pairs_share_an_array_and_an_odd_one_is_doubled(convert, count):
    matrices = symmetric(count, 3)
    packed = _triangles.pack_pairs(convert(matrices))
    assert packed.shape == (-(-count // 2), 3, 4)
    assert type(packed) is type(convert(matrices))
    np.testing.assert_array_equal(_triangles.unpack_pairs(packed, count), matrices, strict=True)
    if count % 2:
        np.testing.assert_array_equal(_triangles.second(packed)[-1], matrices[-1])


@pytest.mark.parametrize("count", [4, 5])
def test_chunks_of_even_length_are_packed_like_the_whole(count):
    matrices = symmetric(count, 3)
    chunks = [_triangles.pack_pairs(matrices[i : i + 2]) for i in range(0, count, 2)]
    np.testing.assert_array_equal(np.concatenate(chunks), _triangles.pack_pairs(matrices))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtypes_stay_and_jit_changes_nothing(dtype):
    matrices = jnp.asarray(symmetric(3, 4), dtype)
    packed = jax.jit(_triangles.pack_pairs)(matrices)
    assert packed.dtype == dtype
    np.testing.assert_array_equal(packed, _triangles.pack_pairs(matrices))
    found = jax.jit(_triangles.unpack_pairs, static_argnums=1)(packed, 3)
    np.testing.assert_array_equal(found, matrices, strict=True)


def test_only_the_own_triangle_of_each_matrix_is_read():
    x, y = np.arange(9.0).reshape(3, 3), -np.arange(9.0).reshape(3, 3)
    packed = _triangles.pack(x, y)
    np.testing.assert_array_equal(_triangles.first(packed), np.tril(x) + np.tril(x, -1).T)
    np.testing.assert_array_equal(_triangles.second(packed), np.triu(y) + np.triu(y, 1).T)
