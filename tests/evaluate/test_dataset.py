"""Which images are taken, and what they are said to show."""

import pytest

from vistazo_evaluate.dataset import read_dataset
from vistazo_evaluate.errors import EvaluationError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_folder_has_a_class_in_each_subfolder_and_no_hidden_files(tmp_path):
    touch(tmp_path / "cat" / "b.PNG", tmp_path / "cat" / "a.jpg", tmp_path / "dog" / "c.webp")
    touch(tmp_path / "cat" / "._a.jpg", tmp_path / ".git" / "x.png", tmp_path / "cat" / "read.me")
    touch(tmp_path / "cat" / "folder.png" / "x.txt")

    found = read_dataset(tmp_path)

    assert [path.relative_to(tmp_path).as_posix() for path in found.paths] == [
        "cat/a.jpg",
        "cat/b.PNG",
        "dog/c.webp",
    ]
    assert found.names == (("cat",), ("cat",), ("dog",))
    assert found.distinct_names == ["cat", "dog"]
    assert found.notes == ("Folders inside cat were left out; --recursive takes the images in them, too.",)


def test_what_is_left_out_is_said(tmp_path):
    touch(tmp_path / "stray.jpg", tmp_path / "cat" / "a.jpg", tmp_path / "cat" / "more" / "b.jpg")
    (tmp_path / "dog").mkdir()

    notes = " ".join(read_dataset(tmp_path).notes)

    assert "1 images beside the classes' folders" in notes
    assert "No images are in dog" in notes
    assert "Folders inside cat were left out" in notes


def test_images_at_any_depth_are_of_the_class_at_the_top(tmp_path):
    touch(
        tmp_path / "cat" / "a.jpg", tmp_path / "cat" / "x" / "y" / "b.jpg", tmp_path / "cat" / ".x" / "c.jpg"
    )
    (tmp_path / "cat" / "x" / "loop").symlink_to(tmp_path / "cat", target_is_directory=True)

    found = read_dataset(tmp_path, recursive=True)

    assert [path.name for path in found.paths] == ["a.jpg", "b.jpg"]
    assert found.names == (("cat",), ("cat",))


@pytest.mark.parametrize("head", ["", "path,label\n", "Label,note,PATH\n"])
def test_a_csv_names_its_columns_or_has_two(tmp_path, head):
    rows = (
        'a.jpg,cat\n\nsub/b.jpg,"tench, Tinca tinca"\n'
        if not head.startswith("Label")
        else 'cat,x,a.jpg\n"tench, Tinca tinca",,sub/b.jpg\n'
    )
    (tmp_path / "data.csv").write_text("\ufeff" + head + rows, encoding="utf-8")

    found = read_dataset(tmp_path / "data.csv")

    assert found.paths == (tmp_path / "a.jpg", tmp_path / "sub" / "b.jpg")
    assert found.names == (("cat",), ("tench, Tinca tinca",))


def test_several_labels_of_a_csv_have_a_bar_between_them_and_none_is_fine(tmp_path):
    (tmp_path / "data.csv").write_text("a.jpg, cat | dog |cat\nb.jpg,\n/abs/c.jpg,dog\n")

    found = read_dataset(tmp_path / "data.csv")

    assert found.names == (("cat", "dog"), (), ("dog",))
    assert str(found.paths[2]) == "/abs/c.jpg"
    assert found.most_names == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a.jpg,cat\na.jpg,dog\n", r"line 2: expected each image once, got that of line 1 again \(a.jpg\)"),
        ("a.jpg,tench, Tinca tinca\n", "line 1: expected 2 cells, path and label among them, got 3"),
        ("a.jpg\n", "line 1: expected 2 cells"),
        (",cat\n", "line 1: expected the path of an image"),
        ('a.jpg,"cat\n', "expected CSV of path and label"),
        ("path,label\n", "got no image"),
        ("", "got no image"),
    ],
)
def test_a_csv_that_is_not_clear_is_refused_with_its_line(tmp_path, text, why):
    (tmp_path / "data.csv").write_text(text)

    with pytest.raises(EvaluationError, match=why):
        read_dataset(tmp_path / "data.csv")


def test_what_is_no_text_is_no_csv(tmp_path):
    (tmp_path / "data.csv").write_bytes(b"a.jpg,caf\xe9\n")

    with pytest.raises(EvaluationError, match="expected a CSV file in UTF-8"):
        read_dataset(tmp_path / "data.csv")


def test_a_folder_without_subfolders_says_what_was_expected(tmp_path):
    touch(tmp_path / "a.jpg")

    with pytest.raises(EvaluationError, match="expected a subfolder for each class"):
        read_dataset(tmp_path)
