"""Mixtures: rates, epochs, addresses, any number of ranks."""

import math
from collections import Counter

import pytest

from atelier.data.loader import Loader, Mixture, ShardDataset
from atelier.data.mixture import Apportionment, whole_weights
from atelier.errors import ConfigError
from tests.data import small_shards


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardDataset, ShardDataset, ShardDataset]:
    base = tmp_path_factory.mktemp("mixture")
    sizes = {"small": (3, 4), "middle": (10, 10, 5), "large": (20, 20, 20)}
    small, middle, large = (
        ShardDataset(small_shards.write(base / name, base / f"{name}-work", size)) for name, size in sizes.items()
    )
    return small, middle, large


@pytest.mark.parametrize(
    "rates", [[1], [1, 1], [0.7, 0.3], [3, 1], [0.7, 0.2, 0.1], [1, 1, 1, 1, 1], [100, 1, 1, 7, 0.5], [math.pi, 1e-3]]
)
def test_every_prefix_has_its_shares(rates: list[float]) -> None:
    split = Apportionment(whole_weights(rates))
    counts = [0] * len(rates)
    worst = 0.0
    for position in range(20_000):
        part, own = split.place(position)
        assert own == counts[part]
        counts[part] += 1
        worst = max(
            worst, *(abs(c - (position + 1) * rate / sum(rates)) for c, rate in zip(counts, rates, strict=True))
        )
    assert worst <= (0.5 if len(rates) < 3 else 1.0) + 1e-6
    for part in range(len(rates)):
        assert split.count(part, 20_000) == counts[part]
        if counts[part]:
            end = split.position(part, counts[part])
            assert (split.count(part, end - 1), split.count(part, end)) == (counts[part] - 1, counts[part])
    far = 10**15
    assert sum(split.count(part, far) for part in range(len(rates))) == far
    for part, rate in enumerate(rates):
        assert abs(split.count(part, far) - whole_weights(rates)[part] * far / sum(whole_weights(rates))) < 2, rate


def test_rates_are_taken_as_written() -> None:
    assert whole_weights([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert whole_weights([3, 1.5]) == [2, 1]


def test_passes_epoch_and_addresses(datasets: tuple[ShardDataset, ...]) -> None:
    small, middle, large = datasets
    mixture = Mixture({"small": (small, 1), "middle": (middle, 1), "large": (large, 2)})
    assert len(mixture) == 92
    size = mixture.epoch_size
    assert 118 <= size <= 122  # large: 60 samples at half the rate
    loader = Loader(mixture, 1, seed=9)
    drawn = [next(loader)[0] for _ in range(size)]
    places = {(sample["epoch"], sample["index"]) for sample in drawn}
    assert len(places) == size
    by_part = Counter("small" if s["index"] < 7 else "middle" if s["index"] < 32 else "large" for s in drawn)
    assert by_part["large"] == pytest.approx(size / 2, abs=1)
    assert by_part["small"] == pytest.approx(size / 4, abs=1)
    assert {s["index"] for s in drawn} == set(range(92)), "an epoch holds every sample at least once"
    assert {s["index"] for s in drawn[:-1]} != set(range(92)), "and is no longer than that needs"
    # The small data set is repeated with a new shuffle each pass, every sample once a pass.
    passes = [s["index"] for s in drawn if s["index"] < 7]
    assert sorted(passes[:7]) == sorted(passes[7:14]) == list(range(7))
    assert len({tuple(passes[i : i + 7]) for i in range(0, 28, 7)}) > 1
    for sample in drawn:
        assert mixture.sample(sample["index"])["key"] == sample["key"]


def test_any_number_of_ranks_and_workers_sees_one_order_and_resume_is_a_number(
    datasets: tuple[ShardDataset, ...],
) -> None:
    small, middle, large = datasets
    mixture = Mixture({"a": (small, 0.2), "b": (middle, 0.3), "c": (large, 0.5)})

    def batches(world: int, workers: int, start: int, count: int) -> list[list[tuple[int, int]]]:
        loaders = [
            Loader(mixture, 12 // world, rank, world, seed=1, start=start, workers=workers, window=2)
            for rank in range(world)
        ]
        try:
            return [[(s["epoch"], s["index"]) for loader in loaders for s in next(loader)] for _ in range(count)]
        finally:
            for loader in loaders:
                loader.close()

    expected = batches(1, 0, 0, 20)
    assert batches(2, 2, 0, 20) == batches(4, 1, 0, 20) == expected
    assert batches(3, 2, 12 * 13, 7) == expected[13:]


def test_a_mixture_of_one_is_that_data_set(datasets: tuple[ShardDataset, ...]) -> None:
    alone, mixed = Loader(datasets[1], 5, seed=4), Loader(Mixture({"it": (datasets[1], 0.3)}), 5, seed=4)
    for _ in range(12):
        assert [s["key"] for s in next(alone)] == [s["key"] for s in next(mixed)]


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf, True, "half"])
def test_bad_rates_are_named(datasets: tuple[ShardDataset, ...], rate: float) -> None:
    with pytest.raises(ConfigError, match="'coco'") as error:
        Mixture({"coco": (datasets[0], rate), "sa1b": (datasets[1], 1)})
    assert repr(rate) in str(error.value)
    assert "sa1b" not in str(error.value)


def test_at_least_one_data_set() -> None:
    with pytest.raises(ConfigError, match="without data sets"):
        Mixture({})
