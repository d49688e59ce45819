"""The mailbox: how much goes into it. What goes through it is tested with what sends it."""

import jax

from quire.pallas_kernels import peer_memory


def test_room_is_bounded() -> None:
    assert peer_memory.rows_of(2, 4096, "bfloat16") == 512
    assert peer_memory.rows_of(4, 8192, "bfloat16") == 170
    assert peer_memory.rows_of(8, 8192, "bfloat16") == 73
    mailbox = jax.eval_shape(lambda: peer_memory.empty(4, 8192, "bfloat16"))
    assert mailbox.inbox.shape == (2, 4, 170, 8192)
    assert mailbox.flags.shape == (9, 170)
    assert mailbox.words.shape == (2, 4, 8192)
    assert mailbox.peers.shape == (4, 6)
