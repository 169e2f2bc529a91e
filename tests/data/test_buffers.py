import numpy as np

from atelier.data.buffers import Buffers, stack


def test_a_buffer_is_used_again_only_when_nothing_refers_to_it() -> None:
    buffers = Buffers()
    first = buffers.take(1000)
    place = first.ctypes.data
    view = first[100:200].view(np.float16).reshape(5, 10)
    del first
    second = buffers.take(1000)
    assert second.ctypes.data != place
    del view
    assert buffers.take(1000).ctypes.data == place
    assert second.ctypes.data != place


def test_tensors_keep_their_memory_too() -> None:
    import torch

    buffers = Buffers()
    tensor = torch.from_numpy(buffers.take(1000)[:64].view(np.float32))
    taken = [buffers.take(1000) for _ in range(3)]
    assert tensor.data_ptr() not in {each.ctypes.data for each in taken}


def test_small_needs_do_not_hold_large_buffers() -> None:
    buffers = Buffers()
    large = buffers.take(10**7)
    assert len(large) >= 10**7
    place = large.ctypes.data
    del large
    assert buffers.take(1000).ctypes.data != place


def test_stacked_batches_that_are_kept_keep_their_content() -> None:
    kept = [stack([np.full((3, 5), number, np.float16), np.full((3, 5), -number, np.float16)]) for number in range(9)]
    for number, batch in enumerate(kept):
        assert batch.shape == (2, 3, 5)
        assert (batch[0] == number).all()
        assert (batch[1] == -number).all()
    place = kept[4].ctypes.data
    del kept, batch
    again = [stack([np.zeros((3, 5), np.float16)] * 2) for _ in range(9)]
    assert place in {each.ctypes.data for each in again}
