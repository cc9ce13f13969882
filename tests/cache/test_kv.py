"""The device arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sgjax.cache.kv import kv_bytes_per_page, make_kv_cache
from sgjax.types import KVSpec

SPECS = [KVSpec(num_kv_heads=2, head_dim=8), KVSpec(num_kv_heads=4, head_dim=16)]


def test_every_layer_has_its_own_shape_and_the_bytes_add_up():
    cache = make_kv_cache(SPECS, num_pages=6, page_size=16, dtype=jnp.bfloat16)
    assert [(k.shape, v.shape) for k, v in cache] == [((2, 6, 16, 8),) * 2, ((4, 6, 16, 16),) * 2]
    arrays = jax.tree.leaves(cache)
    assert all(a.dtype == jnp.bfloat16 for a in arrays)
    assert sum(a.nbytes for a in arrays) == 6 * kv_bytes_per_page(SPECS, 16, "bfloat16")


def test_the_whole_pool_can_be_donated():
    """A buffer that two entries share could not be given away twice."""
    cache = make_kv_cache([SPECS[0]] * 3, num_pages=2, page_size=16, dtype="float32")
    addresses = {a.unsafe_buffer_pointer() for a in jax.tree.leaves(cache)}
    assert len(addresses) == 6
    new = jax.jit(lambda c: jax.tree.map(lambda a: a.at[0, 1].set(1.0), c), donate_argnums=0)(cache)
    assert {a.unsafe_buffer_pointer() for a in jax.tree.leaves(new)} == addresses
    np.testing.assert_array_equal(new[0][0][0, 1], 1.0)


def test_a_sharding_is_obeyed():
    mesh = jax.make_mesh((1,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("tensor"))
    cache = make_kv_cache(SPECS, num_pages=2, page_size=16, dtype="float32", sharding=sharding)
    assert all(a.sharding == sharding for a in jax.tree.leaves(cache))
