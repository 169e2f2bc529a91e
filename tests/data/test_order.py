"""The order's promises: complete, shuffled well, bounded."""

import itertools

import numpy as np
import pytest

from atelier.data.order import ShuffledOrder


def starts(sizes: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


def epoch(order: ShuffledOrder, number: int) -> np.ndarray:
    places = range(number * order.total, (number + 1) * order.total)
    found = [order.index(place) for place in places]
    assert {each for each, _ in found} == {number}
    return np.array([index for _, index in found])


@pytest.mark.parametrize("window", [1, 2, 3, 64])
def test_every_sample_once_an_epoch(window: int) -> None:
    order = ShuffledOrder(starts([7, 1, 12, 3, 9]), 4, window)
    for number in (0, 1, 5):
        assert sorted(epoch(order, number)) == list(range(32))


def test_another_seed_epoch_or_stream_is_another_order() -> None:
    sizes = starts([50, 50])
    orders = [epoch(ShuffledOrder(sizes, seed, stream=stream), 0) for seed, stream in ((0, ()), (1, ()), (0, (1,)))]
    orders.append(epoch(ShuffledOrder(sizes, 0), 1))
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).mean() < 0.1
    assert (epoch(ShuffledOrder(sizes, 0), 0) == orders[0]).all()


@pytest.mark.parametrize("window", [4, 64])
def test_the_shuffle_leaves_no_trace_of_the_original_order(window: int) -> None:
    count = 4000
    order = ShuffledOrder(starts([250] * 16), 11, window)
    drawn = epoch(order, 0)
    # Under a random permutation Spearman's rank correlation has a standard deviation of 1/sqrt(n - 1) = 0.016; windows
    # of four shards out of sixteen leave four independent groups, so their order alone gives up to ±1/sqrt(3).
    rank = np.corrcoef(np.arange(count), drawn)[0, 1]
    assert abs(rank) < (0.06 if window == 64 else 0.9)
    # Neighbours stay neighbours about twice in a random permutation, whatever its length.
    assert (np.abs(np.diff(drawn)) == 1).sum() < (12 if window == 64 else 30)
    # Within a window each part of the window's shards comes equally often.
    first_window = drawn[: min(window, 16) * 250]
    shards = np.unique(first_window // 250)
    assert len(shards) == min(window, 16)
    quarter = len(first_window) // 4
    for part in range(4):
        counts = np.bincount(first_window[part * quarter : (part + 1) * quarter] // 250, minlength=16)[shards]
        expected = quarter / len(shards)
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_a_samples_place_is_uniform_over_epochs() -> None:
    order = ShuffledOrder(starts([8, 8, 8, 8]), 3, window=2)
    epochs = 600
    places = np.array([np.argsort(epoch(order, number)) for number in range(epochs)])  # [epoch, sample] → place
    for sample in range(32):
        counts = np.bincount(places[:, sample], minlength=32)
        chi_square = ((counts - epochs / 32) ** 2 / (epochs / 32)).sum()
        assert chi_square < 75  # 31 degrees of freedom: 1 in 60,000 by chance for one sample, fixed seed
    later = [np.corrcoef(one, other)[0, 1] for one, other in itertools.pairwise(places)]
    assert abs(np.mean(later)) < 0.1  # one epoch's order says nothing of the next's; standard deviation about 0.02


def test_upcoming_windows_are_those_of_the_order() -> None:
    order = ShuffledOrder(starts([3, 5, 2, 4, 6]), 1, window=2)
    upcoming = list(itertools.islice(order.upcoming(13), 7))
    assert upcoming[0][0] <= 13 < upcoming[1][0]
    for (first, shards), (end, _) in itertools.pairwise(upcoming):
        used = {int(np.searchsorted(order.starts, order.index(p)[1], side="right")) - 1 for p in range(first, end)}
        assert used == set(shards.tolist())


def test_replacements_follow_the_epochs_order_and_go_round() -> None:
    order = ShuffledOrder(starts([4, 4]), 2)
    drawn = epoch(order, 1).tolist()
    assert [order.replacement(8 + 6, attempt) for attempt in (1, 2, 3)] == [drawn[7], drawn[0], drawn[1]]


def test_eleven_million_samples_need_no_permutation_of_all() -> None:
    import tracemalloc

    order = ShuffledOrder(starts([11_185] * 1000), 0)
    tracemalloc.start()
    order.index(5_000_000)
    order.index(11_185_000 + 7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
