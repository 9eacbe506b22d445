"""Labels files in the shapes people have: the right names in the right order, or refused with the line."""

import json
from pathlib import Path

import pytest

from vistazo_export.errors import LabelsError
from vistazo_export.networks.labels import read_labels
from vistazo_export.progress import Progress

BIRDS = ("wren", "barn owl", "magpie", "great tit, male")
IDS = ("n01440764", "n01443537", "n01484850", "n01491361")


def read(tmp_path: Path, text: str) -> tuple[tuple[str, ...], list[str]]:
    """Return the labels in a file of this text, and the warnings."""
    path = tmp_path / "labels.txt"
    path.write_text(text, encoding="utf-8")
    said: list[str] = []
    return read_labels(path, Progress(warning=said.append)), said


def lines(form: str, names: tuple[str, ...] = BIRDS, first: int = 0) -> str:
    return "".join(
        form.format(index=index + first, name=name, wordnet=IDS[index]) + "\n"
        for index, name in enumerate(names)
    )


def test_labels_are_read_in_order_without_the_line_ends(tmp_path: Path):
    (tmp_path / "labels.txt").write_bytes("\ufeffcat\r\ndog \r\npájaro\r\n\r\n".encode())

    assert read_labels(tmp_path / "labels.txt") == ("cat", "dog", "pájaro")


@pytest.mark.parametrize(
    "names",
    [
        ("great white shark, white shark", "tench, Tinca tinca", "hen"),
        ("7 up", "cola", "3 musketeers"),
        ("cola", "7up", "1,000 island dressing", "rice: brown"),
        ("0", "1", "2", "3"),
        ("[unused]", "[mask]", "cat"),
        ("n't", "n01440764", "cat"),
        ("cat\tdomestic", "dog", "7"),
        ("Audi A4, b", "BMW M3, 2012", "Fiat 500, 2010"),
    ],
    ids=str,
)
def test_plain_labels_with_commas_and_digits_of_their_own_are_left_alone(
    tmp_path: Path, names: tuple[str, ...]
):
    assert read(tmp_path, "\n".join(names)) == (names, [])


@pytest.mark.parametrize(
    "form",
    ["{index}:{name}", "{index}: {name}", "{index}\t{name}", "{index},{name}", "{index} {name}",
     "{index:03} {name}", '{index},"{name}"', "  {index}: '{name}',", "{index} - {name}", "{index};{name}",
     "{name}\t{index}", "{index} {wordnet} {name}"],
)  # fmt: skip
def test_a_number_and_a_name_a_line_give_the_names_by_their_numbers_and_that_is_said(
    tmp_path: Path, form: str
):
    form = form.removesuffix(",") if form.endswith("',") else form
    labels, said = read(tmp_path, lines(form))

    assert labels == BIRDS
    assert "index" in said[0]
    assert "class 0 is 'wren'" in said[0]


def test_numbered_lines_in_any_order_are_put_into_the_order_of_their_numbers(tmp_path: Path):
    labels, _ = read(tmp_path, "2: c\n0: a\n1: b\n")

    assert labels == ("a", "b", "c")


def test_a_table_with_a_header_loses_it(tmp_path: Path):
    assert read(tmp_path, "index,label\n" + lines("{index},{name}"))[0] == BIRDS


def test_numbers_from_one_are_taken_and_that_is_said(tmp_path: Path):
    labels, said = read(tmp_path, lines("{index} {name}", first=1))

    assert labels == BIRDS
    assert "numbered 1 to 4" in said[0]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("10 pound note\n20 pound note\n", ("10 pound note", "20 pound note")),
        ("1 series\n3 series\n5 series\n7 series\n", ("1 series", "3 series", "5 series", "7 series")),
        ("Audi A4, 2012\nFiat 500, 2010\n", ("Audi A4, 2012", "Fiat 500, 2010")),
    ],
)
def test_numbers_that_count_no_classes_stay_in_the_labels_and_that_is_said(
    tmp_path: Path, text: str, names: tuple[str, ...]
):
    labels, said = read(tmp_path, text)

    assert labels == names
    assert "number that is part of it" in said[0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0: a\n1: b\n3: c\n", r"line 3 .*index 2 is missing"),
        ("0\ta\n2\tb\n", r"line 2 .*index 1 is missing"),
        ("5,a\n6,b\n", r"line 1 .*index 0 is missing"),
        ("0 a\n1 b\n3 c\n", r"line 3 .*index 2 is missing"),
        ("0: a\n1: b\n1: c\n", r"line 3 .*index 1 a second time"),
        ("0: a\n1: b\nc\n", r"line 3 .*no number"),
        ("0: a\n1: b\n2:\n", r"line 3 .*no label"),
        ("names:\n 0: a\n 1: b\n", r"line 1 .*no number"),
        ("n01440764 tench\nn01443537 goldfish\nshark\n", r"line 3 .*no WordNet"),
    ],
)
def test_a_line_that_does_not_fit_the_others_is_refused_by_its_number(
    tmp_path: Path, text: str, complaint: str
):
    with pytest.raises(LabelsError, match=complaint):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "form", ["{wordnet} {name}", "{wordnet}\t{name}", "{wordnet}, {name}", "{wordnet}: {name}"]
)
def test_wordnet_ids_before_the_names_are_dropped_and_that_is_said(tmp_path: Path, form: str):
    labels, said = read(tmp_path, lines(form))

    assert labels == BIRDS
    assert "WordNet" in said[0]


BY_NUMBER = {str(index): name for index, name in enumerate(BIRDS)}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(BIRDS, indent=2),
        json.dumps(BY_NUMBER),
        json.dumps(dict(reversed(BY_NUMBER.items()))),
        str(dict(enumerate(BIRDS))),
        "{0: 'wren',\n 1: 'barn owl',\n 2: 'magpie',\n 3: 'great tit, male',}\n",
        str(list(BIRDS)),
        f"CLASSES = {BIRDS!r}".replace("(", "[").replace(")", "]"),
        json.dumps({"model_type": "vit", "id2label": BY_NUMBER, "label2id": {}}),
        json.dumps({"names": BIRDS, "nc": 4}),
        json.dumps({name: index for index, name in enumerate(BIRDS)}),
        json.dumps({str(index): [IDS[index], name] for index, name in enumerate(BIRDS)}),
        json.dumps(dict(zip(IDS, BIRDS, strict=True))),
        json.dumps([{"id": index, "name": name} for index, name in enumerate(BIRDS)]),
    ],
)
def test_lists_and_dicts_of_json_and_python_give_their_names_in_class_order(tmp_path: Path, text: str):
    labels, said = read(tmp_path, text)

    assert labels == BIRDS
    assert "list" in said[0] or "dict" in said[0] or "WordNet" in said[0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"0": "a", "2": "b"}', "index 1 is missing"),
        ('{"0": "a", "0": "b"}', "'0' twice"),
        ("{0: 'a', 0: 'b'}", "0 twice"),
        ('{"a": 0, "b": 0}', "index 0 twice"),
        ('["a",\n "b"', "line 2 .*JSON or Python"),
        ('{\n"0": "a",\n"1" "b"\n}', "line 3 .*JSON or Python"),
        ('["a", ""]', "item 1 is ''"),
        ('["a", null]', "item 1 is 'None'"),
        ("[]", "empty list"),
        ("{}", "empty list or dict"),
        ('{"cat": "Katze", "dog": "Hund"}', "'cat' is no class index"),
        ("[" * 100_000, "nested too deeply|JSON or Python"),
    ],
)
def test_lists_and_dicts_that_leave_a_class_open_are_refused(tmp_path: Path, text: str, complaint: str):
    with pytest.raises(LabelsError, match=complaint):
        read(tmp_path, text)


def test_only_line_ends_end_a_line(tmp_path: Path):
    text = "one\u2028label\r\ntwo\x85parts\rthree\n"
    (tmp_path / "labels.txt").write_bytes(text.replace("\x85", "").encode())

    assert read_labels(tmp_path / "labels.txt") == ("one\u2028label", "twoparts", "three")


@pytest.mark.parametrize("text", ["cat\nd\x1b[31mog\n", '["cat", "d\\u001b[31mog"]', "0 cat\n1 d\x9bog\n"])
def test_labels_that_would_steer_a_terminal_are_refused(tmp_path: Path, text: str):
    with pytest.raises(LabelsError, match=r"the label of class 1 .* has a control character: 'd\\x"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"cat\n\ndog\n", "line 2 .* is blank"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(tmp_path: Path, content: bytes, complaint: str):
    (tmp_path / "labels.txt").write_bytes(content)

    with pytest.raises(LabelsError, match=complaint):
        read_labels(tmp_path / "labels.txt")


def test_a_missing_labels_file_is_named(tmp_path: Path):
    with pytest.raises(LabelsError, match=r"cannot read the labels file .*gone\.txt: No such file"):
        read_labels(tmp_path / "gone.txt")
