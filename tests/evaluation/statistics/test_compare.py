"""Comparisons of synthetic records with known quality."""

import json
from itertools import pairwise

import numpy as np
import pytest

from vispeft.errors import DataError
from vispeft.evaluation.statistics.bootstrap import Records, plain_ap
from vispeft.evaluation.statistics.compare import Entry, compare, estimate_ap, holm, p_value


def _run(quality: float, seed: int, num_images: int = 60) -> Records:
    """Return records of one category: 3 objects per image, each detected with probability `quality`, and 3 errors."""
    generator = np.random.default_rng(seed)
    num = 6 * num_images
    is_object = np.tile([True, True, True, False, False, False], num_images)
    is_true_positive = is_object & (generator.random(num) < quality)
    order = generator.permutation(num)
    image_idx = np.repeat(np.arange(num_images), 6)[order]
    rows = np.repeat(is_true_positive[order][None], 10, axis=0)
    objects = np.full((1, num_images), 3)
    return Records(image_idx, np.array([0, num]), rows, np.zeros_like(rows), objects)


def test_compare__finds_the_better_and_the_cheapest_of_equals() -> None:
    entries = [
        Entry("poor", (_run(0.3, 0),), 10.0),
        Entry("good", (_run(0.8, 1),), 1000.0),
        Entry("twin", (_run(0.8, 2),), 100.0),
    ]
    found = compare(entries, num_resamples=300)
    assert {found.best, *found.equals} == {"good", "twin"}
    assert found.cheapest == "twin"
    assert [one.name for one in found.results] == ["poor", "good", "twin"]
    assert found.results[0].is_distinguishable
    assert "The cheapest of these 2 is twin, with 100 trainable parameters." in found.sentence
    assert sum(one.best_share for one in found.results) == pytest.approx(1)
    assert json.loads(json.dumps(found.to_dict()))["best"] == found.best


def test_compare__metrics_are_those_of_the_whole_set_within_their_intervals() -> None:
    entries = [Entry(name, (_run(quality, 3),)) for name, quality in (("a", 0.5), ("b", 0.7))]
    found = compare(entries, num_resamples=300)
    for entry, one in zip(entries, found.results, strict=True):
        assert one.estimate.value == plain_ap(entry.runs[0])
        assert one.estimate.low < one.estimate.value < one.estimate.high
    difference = found.results[0].difference
    assert difference is not None
    assert difference.value == pytest.approx(found.results[0].estimate.value - found.results[1].estimate.value)
    assert found.results[1].difference is None


def test_compare__is_paired() -> None:
    one = _run(0.6, 4)
    worse = one.is_true_positive.copy()
    worse[:, np.flatnonzero(worse[0])[::20]] = False
    other = Records(one.image_idx, one.category_begins, worse, one.is_ignored, one.num_objects)
    found = compare([Entry("one", (one,)), Entry("other", (other,))], num_resamples=300)
    difference = found.results[1].difference
    assert difference is not None
    assert difference.high - difference.low < 0.5 * (found.results[0].estimate.high - found.results[0].estimate.low)


def test_compare__the_same_run_twice_is_not_distinguishable() -> None:
    found = compare([Entry("a", (_run(0.5, 0),)), Entry("b", (_run(0.5, 0),))], num_resamples=100)
    assert found.best == "a"
    assert found.results[1].corrected_p == 1
    assert [one.best_share for one in found.results] == [0.5, 0.5]
    assert found.cheapest is None
    assert all(0 <= one.estimate.low <= one.estimate.high <= 1 for one in found.results)


def test_compare__seeds_widen_the_interval() -> None:
    runs = tuple(_run(quality, seed) for seed, quality in enumerate((0.4, 0.6, 0.8)))
    found = compare([Entry("seeds", runs)], num_resamples=400).results[0]
    alone = compare([Entry("one", runs[1:2])], num_resamples=400).results[0]
    assert found.estimate.value == pytest.approx(np.mean(found.seed_values))
    assert found.estimate.high - found.estimate.low > 1.5 * (alone.estimate.high - alone.estimate.low)


def test_compare__is_repeatable() -> None:
    entries = [Entry("a", (_run(0.5, 0),)), Entry("b", (_run(0.6, 1), _run(0.6, 2)))]
    assert compare(entries, num_resamples=100, seed=5) == compare(entries, num_resamples=100, seed=5)
    assert compare(entries, num_resamples=100, seed=5) != compare(entries, num_resamples=100, seed=6)


def test_compare__intervals_cover_the_expected_ap() -> None:
    truth = np.mean([plain_ap(_run(0.6, seed, 30)) for seed in range(1000, 1300)])
    found = [estimate_ap([_run(0.6, seed, 30)], num_resamples=150) for seed in range(60)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.85 <= covered <= 1.0


def test_compare__false_alarms_are_rare() -> None:
    alarms = [
        compare([Entry("a", (_run(0.6, seed, 30),)), Entry("b", (_run(0.6, seed + 500, 30),))], num_resamples=150)
        for seed in range(60)
    ]
    assert np.mean([len(one.equals) < 2 for one in alarms]) <= 0.12


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        ([], {}, "at least one configuration"),
        ([Entry("a", ())], {}, "at least one run"),
        ([Entry("a", (_run(0.5, 0),)), Entry("b", (_run(0.5, 0, 61),))], {}, "`b` was not scored on the same objects"),
        ([Entry("a", (_run(0.5, 0),))], {"metric": "AR"}, "`metric` must be one of AP, AP50, AP75"),
        ([Entry("a", (_run(0.5, 0),))], {"num_resamples": 10}, "at least 100"),
    ],
)
def test_compare__refuses(entries: list[Entry], options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare(entries, **options)


def test_compare__without_objects_is_refused() -> None:
    run = _run(0.5, 0)
    empty = Records(run.image_idx, run.category_begins, run.is_true_positive, run.is_ignored, run.num_objects * 0)
    with pytest.raises(DataError, match="no object to detect"):
        compare([Entry("a", (empty,))])


def test_compare__notes_name_its_limits() -> None:
    found = compare([Entry(str(n), (_run(0.5, n, 10),)) for n in range(8)], num_resamples=100)
    assert any("trained once" in note for note in found.notes)
    assert any("10 images are few" in note for note in found.notes)
    assert any("Take more resamples" in note for note in found.notes)


def test_holm__by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm__keeps_the_order() -> None:
    p_values = np.random.default_rng(0).random(20).tolist()
    corrected = [one for _, one in sorted(zip(p_values, holm(p_values), strict=True))]
    assert all(first <= second for first, second in pairwise(corrected))


def test_p_value__is_two_sided_and_counts_itself() -> None:
    samples = np.linspace(-1, 1, 99) + 5
    assert p_value(0.0, samples, 100) == 1
    assert p_value(2.0, samples, 100) == pytest.approx(0.01)
    assert p_value(-2.0, samples, 100) == pytest.approx(0.01)


def test_p_value__a_difference_that_never_varies_is_one() -> None:
    assert p_value(0.5, np.full(99, 0.5), 100) == pytest.approx(0.01)
    assert p_value(0.0, np.zeros(99), 100) == 1


@pytest.mark.parametrize(("num_images", "least"), [(1, 1.0), (2, 0.5), (5, 0.0625), (5000, 0.01)])
def test_p_value__few_images_can_agree_by_chance(num_images: int, least: float) -> None:
    assert p_value(0.5, np.full(99, 0.5), num_images) == pytest.approx(least)


def test_compare__nothing_found_is_distinguishable_from_everything_found() -> None:
    all_found = _run(1.0, 0)
    nothing = np.zeros_like(all_found.is_true_positive)
    none_found = Records(
        all_found.image_idx, all_found.category_begins, nothing, all_found.is_ignored, all_found.num_objects
    )
    found = compare([Entry("all", (all_found,)), Entry("none", (none_found,))], num_resamples=100)
    assert found.equals == ("all",)


def test_compare__few_images_distinguish_nothing() -> None:
    found = compare([Entry("good", (_run(0.9, 0, 3),)), Entry("poor", (_run(0.1, 0, 3),))], num_resamples=100)
    assert found.equals == ("good", "poor")
    assert found.cheapest is None
    assert found.sentence.endswith(", but 3 images are too few to distinguish 2 configurations.")
    assert any("3 images are too few to distinguish 2 configurations" in note for note in found.notes)
