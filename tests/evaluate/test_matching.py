"""Names of images → classes of the model: by text, index, synset or mapping, and never by a guess."""

import csv
from importlib.resources import files

import pytest

from vistazo_evaluate.errors import EvaluationError
from vistazo_evaluate.names.mapping import read_mapping
from vistazo_evaluate.names.matching import match_names

ANIMALS = ("tabby, tabby cat", "Egyptian cat", "great_white-shark, white shark", "dog")
DIGITS = tuple("0123456789")


def imagenet_labels():
    """Return the first word of each of ImageNet's classes, as most models have it."""
    text = (files("vistazo_evaluate.names") / "imagenet.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return tuple(words.split(", ")[0] for _, words in rows), [synset for synset, _ in rows]


@pytest.mark.parametrize(
    ("names", "indices", "said"),
    [
        (["dog", "Egyptian cat"], [3, 1], "2 names matched by label text, to the letter."),
        (["DOG", "egyptian_cat"], [3, 1], "2 but for case, spaces and underscores"),
        (["Tabby-Cat", "dog"], [0, 3], "1 by one of the label's synonyms"),
        (["white shark"], [2], "1 by one of the label's synonyms"),
        (["tabby", "tabby cat"], [0, 0], "2 by one of the label's synonyms"),
        (["tabby, tabby cat"], [0], "to the letter"),
    ],
)
def test_label_text_is_tried_first_to_the_letter_then_alike_then_by_synonym(names, indices, said):
    found = match_names(names, ANIMALS)

    assert [found.index_of[name] for name in names] == indices
    assert found.by == "label text"
    assert said in found.said


def test_accents_may_be_composed_or_not():
    assert match_names(["cafe\u0301"], ["tea", "café"]).index_of == {"cafe\u0301": 1}


@pytest.mark.parametrize("names", [["0", "3"], ["000", "003"], ["2", "03"]])
def test_numbers_that_are_no_labels_are_class_indices(names):
    found = match_names(names, ANIMALS)

    assert found.by == "class index"
    assert [found.index_of[name] for name in names] == [int(name) for name in names]
    assert "matched by class index, counted from 0" in found.said


def test_digits_of_the_labels_themselves_are_matched_by_text():
    found = match_names(list(DIGITS), DIGITS)

    assert found.by == "label text"
    assert found.index_of == {digit: int(digit) for digit in DIGITS}
    assert "not by index" not in found.said


def test_where_text_and_index_disagree_text_wins_and_it_is_said():
    found = match_names(["1", "2"], ["2", "1", "0"])

    assert found.index_of == {"1": 1, "2": 0}
    assert "not by index, which would be other classes: 2 is the label of class 0" in found.said


def test_numbers_of_which_only_some_are_labels_are_refused():
    # "1" to "3" are labels of classes 0 to 2, and indices of others; "0" is an index alone.
    with pytest.raises(EvaluationError, match="which is meant is not known"):
        match_names(["0", "1", "2"], ["1", "2", "3"])


def test_numbers_counted_from_one_are_refused_with_a_hint():
    with pytest.raises(EvaluationError, match="seem to be counted from 1"):
        match_names(["1", "2", "3", "4"], ANIMALS)


def test_a_number_beyond_the_classes_is_refused():
    with pytest.raises(EvaluationError, match='class indices are 0 to 3, which "7" is none of'):
        match_names(["0", "7"], ANIMALS)
    with pytest.raises(EvaluationError, match="no label matches"):
        match_names(["9" * 5000], ANIMALS)


def test_names_that_match_nothing_are_named_with_the_labels_closest_to_them():
    with pytest.raises(EvaluationError) as refused:
        match_names(["dog", "egyptian cats", "xylophone"], ANIMALS)

    said = str(refused.value)
    assert "1 of 3 names of the images match one label each of the model's 4" in said
    assert '"egyptian cats" (most like "Egyptian cat")' in said
    assert '"xylophone"' in said
    assert "--mapping" in said


def test_many_that_match_nothing_are_counted():
    with pytest.raises(EvaluationError, match="and 15 more"):
        match_names([f"thing {number}" for number in range(25)], ANIMALS)


@pytest.mark.parametrize("name", ["crane", "Crane", "maillot_"])
def test_imagenets_twins_are_refused_by_text(name):
    labels, _ = imagenet_labels()

    with pytest.raises(EvaluationError, match="more than one label matches"):
        match_names([name, "goldfish"], labels)


@pytest.mark.parametrize(("before", "first"), [((), 0), (("background",), 1)])
def test_synsets_match_imagenets_classes_in_their_order(before, first):
    labels, synsets = imagenet_labels()

    found = match_names(["n02123045", "n02012849", "n03126707"], (*before, *labels))

    assert found.by == "ImageNet synset"
    assert found.index_of == {
        "n02123045": 281 + first,
        "n02012849": 134 + first,
        "n03126707": 517 + first,
    }
    assert found.index_of["n02123045"] == synsets.index("n02123045") + first


@pytest.mark.parametrize(
    "labels", [ANIMALS, tuple(sorted(imagenet_labels()[0])), tuple(f"class {n}" for n in range(1000))]
)
def test_synsets_are_refused_for_other_classes_or_another_order(labels):
    with pytest.raises(EvaluationError, match="synsets need a model of ImageNet's 1,000 classes"):
        match_names(["n02123045"], labels)


def test_an_unknown_synset_is_refused():
    with pytest.raises(EvaluationError, match='1,000 synsets "n99999999" is none'):
        match_names(["n02123045", "n99999999"], imagenet_labels()[0])


def test_imagenets_ids_are_in_the_order_that_timm_has(tmp_path):
    from vistazo_export.networks.zoo import torchvision_models

    assert torchvision_models()  # first, as timm would fail to import it
    from timm.data import ImageNetInfo

    _, synsets = imagenet_labels()

    assert synsets == ImageNetInfo("imagenet-1k").label_names()


@pytest.mark.parametrize("model", ["resnet18"])
def test_torchvisions_labels_are_recognised_as_imagenets(model):
    from vistazo_export.networks.zoo import torchvision_models

    labels = torchvision_models().get_model_weights(model).DEFAULT.meta["categories"]

    assert match_names(["n02123045"], labels).index_of == {"n02123045": 281}


MAPPINGS = {
    "m.csv": "name,label\nkitty,tabby cat\nhai,2\n",
    "n.csv": 'kitty,"tabby, tabby cat"\nhai,White_Shark\n',
    "m.json": '{"kitty": 0, "hai": "white shark", "unused": "dog"}',
    "m.toml": 'kitty = "tabby"\nhai = 2\n',
}


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_mapping_file_says_label_or_index(tmp_path, name):
    (tmp_path / name).write_text(MAPPINGS[name])

    found = match_names(["hai", "kitty"], ANIMALS, read_mapping(tmp_path / name))

    assert found.by == "mapping file"
    assert found.index_of == {"kitty": 0, "hai": 2}


@pytest.mark.parametrize(
    ("mapping", "why"),
    [
        ({"kitty": "tabby"}, 'got none for "hai"'),
        ({"kitty": "tabby", "hai": "sharks"}, "hai: expected a label of the model, got 'sharks'"),
        ({"kitty": "tabby", "hai": 4}, "hai: expected a class index of 0 to 3, got 4"),
        ({"kitty": "tabby", "hai": -1}, "hai: expected a class index of 0 to 3, got -1"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(mapping, why):
    with pytest.raises(EvaluationError, match=why):
        match_names(["hai", "kitty"], ANIMALS, mapping)


def test_a_mapping_to_a_label_of_two_classes_is_refused():
    with pytest.raises(EvaluationError, match=r"'crane' is the label of classes 0, 1; give the index of one"):
        match_names(["bird"], ["crane", "crane"], {"bird": "crane"})


def test_a_mapping_takes_digits_for_a_label_before_an_index():
    assert match_names(["x"], ["2", "1", "0"], {"x": "2"}).index_of == {"x": 0}
    assert match_names(["x"], ["2", "1", "0"], {"x": 2}).index_of == {"x": 2}


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("m.csv", "kitty,cat\nkitty,dog\n", "'kitty' twice"),
        ("m.csv", "kitty\n", "1 cells"),
        ("m.json", '{"kitty": 1, "kitty": 2}', "'kitty' twice"),
        ("m.json", "[1]", "a list, where an object should be"),
        (
            "m.json",
            '{"kitty": true}',
            "kitty: expected the text of a label or the index of a class, got True",
        ),
        ("m.json", '{"kitty": 1.5}', "got 1.5"),
        ("m.toml", "kitty = ", "expected a mapping"),
        ("m.yaml", "kitty: 1", "expected a mapping in .csv, .json or .toml"),
    ],
)
def test_a_mapping_file_that_is_none_is_refused(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)

    with pytest.raises(EvaluationError, match=why):
        read_mapping(tmp_path / name)


def test_the_table_of_synsets_is_whole():
    text = (files("vistazo_evaluate.names") / "imagenet.tsv").read_text(encoding="utf-8")
    rows = list(csv.reader(text.splitlines()[1:], delimiter="\t"))

    assert len(rows) == len({synset for synset, _ in rows}) == 1000
