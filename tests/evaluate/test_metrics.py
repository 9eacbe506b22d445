"""The figures, on predictions whose right values are worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from vistazo_evaluate.metrics.calibration import calibration
from vistazo_evaluate.metrics.comparison import compare
from vistazo_evaluate.metrics.exclusive import measure
from vistazo_evaluate.metrics.multi_label import measure as measure_multi_label
from vistazo_evaluate.metrics.shares import share

LABELS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


def ranked(*rows):
    return np.array(rows, dtype=np.int32)


def test_a_share_has_wilsons_interval():
    found = share(8, 10)

    # (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964
    assert (found.hits, found.of, found.value) == (8, 10, 0.8)
    assert (found.low, found.high) == (pytest.approx(0.49016, abs=1e-5), pytest.approx(0.94331, abs=1e-5))


def test_all_right_is_not_surely_all_right():
    found = share(10, 10)

    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.72247, abs=1e-5)


def test_a_share_of_nothing_is_not_known():
    assert share(0, 0).value is None


def test_top_1_and_top_5_count_where_the_truth_stands():
    truth = np.array([0, 1, 2, 3])
    ranks = ranked([0, 1, 2, 3, 4], [0, 2, 3, 4, 1], [0, 1, 3, 4, 5], [3, 0, 1, 2, 4])
    found = measure(truth, ranks, np.full((4, 5), 0.2, np.float32), LABELS)

    assert (found.top1.hits, found.top1.of) == (2, 4)
    assert (found.top5.hits, found.top5.of) == (3, 4)


def test_five_classes_have_no_top_5():
    found = measure(np.array([0]), ranked([0, 1, 2]), np.full((1, 3), 0.3, np.float32), LABELS[:3])

    assert found.top5 is None


def test_precision_recall_and_f1_of_a_class():
    # ant: 3 images, 2 right; bee: 1 image, right, and once said of an ant; cat is said never and shown never;
    # dog is shown and never said; elk is said and never shown.
    truth = np.array([0, 0, 0, 1, 3])
    answers = ranked([0], [0], [1], [1], [4])
    found = measure(truth, answers, np.full((5, 1), 0.5, np.float32), LABELS)

    by_label = {each.label: each for each in found.classes}
    assert list(by_label) == ["ant", "bee", "dog", "elk"]
    ant, bee, dog, elk = by_label.values()
    assert (ant.images, ant.answers, ant.precision, ant.recall) == (3, 2, 1.0, pytest.approx(2 / 3))
    assert ant.f1 == pytest.approx(0.8)
    assert (bee.precision, bee.recall, bee.f1) == (0.5, 1.0, pytest.approx(2 / 3))
    assert (dog.images, dog.answers, dog.precision, dog.recall) == (1, 0, None, 0.0)
    assert (elk.images, elk.answers, elk.precision, elk.recall) == (0, 1, 0.0, None)
    # Over ant, bee and dog, which have images.
    assert found.macro.recall == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.macro.precision == pytest.approx((1 + 0.5 + 0) / 3)


@pytest.mark.filterwarnings("error")
def test_the_confusion_is_scikit_learns_matrix():
    rng = np.random.default_rng(5)
    truth, answers = rng.integers(0, 7, 400), rng.integers(0, 7, 400)
    found = measure(truth, answers[:, None].astype(np.int32), np.full((400, 1), 0.4, np.float32), LABELS)

    whole = np.zeros((7, 7), dtype=int)
    for shown, said, images in found.confusion:
        whole[shown, said] = images
    np.testing.assert_array_equal(whole, confusion_matrix(truth, answers, labels=range(7)))


def test_calibration_is_the_mean_distance_weighted_by_answers():
    # Bins of 1/15: four answers at 0.95, three of them right; one at 0.5, right.
    found = calibration(
        np.array([True, True, True, False, True]), np.array([0.95, 0.95, 0.95, 0.95, 0.5], np.float32)
    )

    assert found.expected_error == pytest.approx((4 * abs(0.95 - 0.75) + 1 * abs(0.5 - 1)) / 5)
    assert [each.count for each in found.bins if each.count] == [1, 4]
    assert found.mean_probability == pytest.approx(0.86)
    assert found.right == pytest.approx(0.8)
    assert len(found.bins) == 15


def test_the_bins_hold_their_upper_edge_and_a_hair_above_1():
    found = calibration(np.array([True, False]), np.array([1.0000001, 0.0], np.float32))

    assert found.bins[14].count == found.bins[0].count == 1
    assert found.expected_error == pytest.approx(0, abs=1e-6)


def test_calibration_in_blocks_is_that_of_all(monkeypatch):
    rng = np.random.default_rng(6)
    right, probability = rng.random(1000) < 0.7, rng.random(1000).astype(np.float32)
    whole = calibration(right, probability)
    monkeypatch.setattr("vistazo_evaluate.metrics.calibration._BLOCK", 64)
    parts = calibration(right, probability)

    assert parts.expected_error == pytest.approx(whole.expected_error)
    assert [each.count for each in parts.bins] == [each.count for each in whole.bins]


def test_coverage_counts_what_is_sure_enough_and_what_of_it_is_right():
    truth = np.array([0, 0, 0, 0])
    ranks, values = ranked([0], [0], [1], [0]), np.array([[0.99], [0.9], [0.9], [0.4]], np.float32)
    found = measure(truth, ranks, values, LABELS)

    at = {each.threshold: each for each in found.coverage}
    assert (at[0.0].covered.hits, at[0.0].right.hits) == (4, 3)
    # In single precision as it was sent: 0.9 is not below 0.9.
    assert (at[0.9].covered.hits, at[0.9].right.hits, at[0.9].right.of) == (3, 2, 3)
    assert (at[0.99].covered.hits, at[0.99].right.value) == (1, 1.0)


@pytest.mark.filterwarnings("error")
def test_multi_label_figures():
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=bool)
    probabilities = np.array([[0.9, 0.2, 0.1], [0.8, 0.4, 0.6], [0.7, 0.9, 0.1], [0.1, 0.3, 0.2]], np.float32)
    found = measure_multi_label(truth, probabilities, LABELS[:3], threshold=0.5)

    # ant: said of 0, 1, 2; two are right. bee: said of 2, shown in 1 and 2. cat: said of 1, shown nowhere.
    ant, bee, cat = found.classes
    assert (ant.true_positives, ant.false_positives, ant.false_negatives, ant.true_negatives) == (2, 1, 0, 1)
    assert (bee.true_positives, bee.false_positives, bee.false_negatives, bee.true_negatives) == (1, 0, 1, 2)
    assert (cat.images, cat.answers, cat.average_precision, cat.recall) == (0, 1, None, None)
    # ant's two are ranked before all others; so are bee's.
    assert found.mean_average_precision == pytest.approx(1.0)
    # 3 right of 5 said, 4 shown.
    assert (found.micro.precision, found.micro.recall) == (pytest.approx(3 / 5), pytest.approx(3 / 4))
    assert found.macro.recall == pytest.approx((1 + 0.5) / 2)
    assert (found.exact_match.hits, found.exact_match.of) == (2, 4)
    assert found.hamming_loss == pytest.approx(3 / 12)
    at = {each.threshold: each for each in found.coverage}
    assert at[0.9].covered.hits == 2
    assert (at[0.9].precision, at[0.9].recall) == (pytest.approx(1.0), pytest.approx(2 / 4))


@pytest.mark.filterwarnings("error")
def test_multi_label_images_may_show_nothing_at_all():
    found = measure_multi_label(
        np.zeros((3, 2), dtype=bool), np.full((3, 2), 0.1, np.float32), LABELS[:2], threshold=0.5
    )

    assert found.mean_average_precision is None
    assert found.exact_match.value == 1.0
    assert found.classes == ()


def test_a_mean_average_precision_worked_out_by_hand():
    # Ranked 0.9 (no), 0.8 (yes), 0.7 (no), 0.6 (yes): precision 1/2 and 2/4 where recall rises by a half.
    found = measure_multi_label(
        np.array([[0], [1], [0], [1]], dtype=bool),
        np.array([[0.9], [0.8], [0.7], [0.6]], np.float32),
        LABELS[:1],
        threshold=0.5,
    )

    assert found.mean_average_precision == pytest.approx(0.5)
    assert found.macro.precision == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("only_model", "only_baseline", "p_value"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 * 0.5**5), (1, 8, 2 * (1 + 9) * 0.5**9), (4, 4, 1.0)],
)
def test_mcnemars_exact_test(only_model, only_baseline, p_value):
    right = np.array([True] * 10 + [False] * 3 + [True] * only_model + [False] * only_baseline)
    baseline = np.array([True] * 10 + [False] * 3 + [False] * only_model + [True] * only_baseline)
    found = compare(right, baseline, right == baseline)

    assert (found.both_right, found.both_wrong) == (10, 3)
    assert (found.only_model_right, found.only_baseline_right) == (only_model, only_baseline)
    assert found.p_value == pytest.approx(p_value)
    assert found.agreement.hits == 13
