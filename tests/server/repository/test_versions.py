"""Which versions of a model are served, and which folders are versions at all."""

import pytest

from vistazo_server.repository.versions import VersionPolicy, is_version, newest_first


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("latest:1", ["10"]),
        ("latest:2", ["10", "9"]),
        ("latest:7", ["10", "9", "2"]),
        ("all", ["10", "9", "2"]),
        ("2,10", ["10", "2"]),
        (" 9 , 9,11", ["9"]),
        ("11", []),
    ],
)
def test_a_policy_chooses_by_number_and_gives_the_highest_first(policy, served):
    assert VersionPolicy.parse(policy).choose({"2", "9", "10"}) == served


@pytest.mark.parametrize(
    ("policy", "lower"),
    [
        ("latest:1", ["9", "2"]),
        ("latest:2", ["2"]),
        ("latest:3", []),
        ("latest:9", []),
        ("all", []),
        ("2,9", []),
    ],
)
def test_only_below_the_latest_are_there_versions_that_may_stand_in(policy, lower):
    assert VersionPolicy.parse(policy).lower({"2", "9", "10"}) == lower


def test_listed_versions_that_are_not_there_are_known():
    assert VersionPolicy.parse("1,3,4").missing(["3"]) == ["4", "1"]
    assert VersionPolicy.parse("latest:2").missing([]) == []


@pytest.mark.parametrize(
    "policy", ["", "latest", "latest:0", "latest:-1", "latest:x", "newest:1", "1,", "01", "1;2", "v1", "١"]
)
def test_a_policy_that_makes_no_sense_is_refused_by_name(policy):
    with pytest.raises(ValueError, match=r"expected latest:N .*, all, or versions such as 1,3, got "):
        VersionPolicy.parse(policy)


def test_only_positive_decimal_numbers_are_versions():
    assert [name for name in ("1", "10", "0", "01", "١", "1a", ".1", "-1", "") if is_version(name)] == [
        "1",
        "10",
    ]
    assert newest_first(["9", "10", "1"]) == ["10", "9", "1"]
