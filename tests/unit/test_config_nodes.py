"""The YAML layer: what scalars mean, and what is said about text that is not YAML."""

from __future__ import annotations

import pytest

from llamaswap_py.config import yaml_tree
from llamaswap_py.config.yaml_tree import MAX_TEXT, Listing, Node, Scalar, Table, read_yaml
from llamaswap_py.errors import ConfigError


def read(text: str) -> Table:
    tree = read_yaml(text, "c.yaml")
    assert isinstance(tree, Table)
    return tree


def value(text: str) -> object:
    node = read(f"k: {text}").entries["k"].value
    assert isinstance(node, Scalar)
    return node.value


def error(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "c.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("no", "no"),
        ("12", 12),
        ("-1", -1),
        ("0.5", 0.5),
        ("1e-5", 1e-5),
        ("1:30", "1:30"),
        ("007", "007"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1e999", "1e999"),
        ("9" * 30, 1e30),
        ("2024-01-01", "2024-01-01"),
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("null", None),
        ("~", None),
        ("", None),
        ("''", ""),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_keys_are_text_whatever_they_look_like() -> None:
    assert list(read("7: a\non: b\n1.5: c\n'': d").entries) == ["7", "on", "1.5", ""]


def test_lines_are_kept() -> None:
    tree = read("a: 1\nb:\n  - x\n  - c: 2\n")
    assert tree.entries["b"].line == 2
    items = tree.entries["b"].value
    assert isinstance(items, Listing)
    assert [item.line for item in items.items] == [3, 4]


def test_merge_keys_and_aliases() -> None:
    tree = read("a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 9}\nd: *a\n")

    def plain(node: Node) -> object:
        assert isinstance(node, Table)
        return {k: e.value.value for k, e in node.entries.items() if isinstance(e.value, Scalar)}

    assert plain(tree.entries["c"].value) == {"x": 9, "y": 2, "z": 4}
    assert plain(tree.entries["d"].value) == {"x": 1, "y": 2}


def test_empty_text_is_nothing() -> None:
    assert read_yaml("", "c.yaml") is None
    assert read_yaml("# only a comment\n", "c.yaml") is None


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a:\n\tb: 1", "c.yaml:2:1:", "spaces"),
        ("a: b: c", "c.yaml:1:5:", "quote the value"),
        ("a: 'x", "c.yaml:1:6:", "not closed"),
        ("a: [1, 2\nb: 3", "c.yaml:2:2:", "not closed"),
        ('a: "C:\\models"', "c.yaml:1:8:", "backslash"),
        ("a: *b", "c.yaml:1:4:", "anchor"),
        ("listen: *:8080", "c.yaml:1:10:", "must be quoted"),
        ("a: @b", "c.yaml:1:4:", "must be quoted"),
        ("a: 1\n---\nb: 2", "c.yaml:2:1:", "one document"),
        ("a:\n  b: 1\n c: 2", "c.yaml:3:2:", "indentation"),
        ("a: \x00", "c.yaml:1:4:", "UTF-8"),
        ('a: "\\0"', "c.yaml:1:", "no program accepts"),
        ('a: "\\ud800"', "c.yaml:1:", "no program accepts"),
        ('a: "\\Uffffffff"', "c.yaml:", "not YAML"),
        ("a: !!python/name:os.system x", "c.yaml:1:", "tag"),
        ("!thing {a: 1}", "c.yaml:1:", "tag"),
        ("a: !!int x", "c.yaml:1:", "not of type int"),
        ("? [a]\n: b", "c.yaml:1:", "key"),
        ("? \n: b", "c.yaml:", "a key is empty"),
        ("a: {<<: 3}", "c.yaml:1:", "mappings only"),
        ("a: &a [*a]", "c.yaml:1:", "contains itself"),
        ("[" * 5000, "c.yaml:", "too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "c.yaml:1:", "too deeply"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, place: str, words: str) -> None:
    message = error(text)
    assert message.startswith(place)
    assert words in message
    assert "\n" not in message


@pytest.fixture(params=["libyaml", "PyYAML alone"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Read with each of the two parsers."""
    if request.param == "libyaml":
        assert yaml_tree._libyaml is not None  # in every wheel of PyYAML
    else:
        monkeypatch.setattr(yaml_tree, "_libyaml", None)
    return str(request.param)


SAMPLE = r"""plain: [on, 12, -1.5e3, ~, '', "12", 'it''s', "\u00e9\n", ! 7, !!str 8, é, a b]
block: |
  one
   two
folded: >-
  one
  two
? long key
: {a: &x {c: 1, d: [&s 3, *s]}, b: *x}
"""


def test_both_parsers_give_the_same_tree(parser: str) -> None:
    tree = read(SAMPLE)
    listing = tree.entries["plain"].value
    assert isinstance(listing, Listing)
    assert [item.value for item in listing.items if isinstance(item, Scalar)] == (
        ["on", 12, -1500.0, None, "", "12", "it's", "é\n", 7, "8", "é", "a b"]
    )
    assert {name: entry.line for name, entry in tree.entries.items()} == (
        {"plain": 1, "block": 2, "folded": 5, "long key": 8}
    )
    assert tree.entries["block"].value == Scalar(2, "one\n two\n", "one\n two\n", plain=False)
    assert tree.entries["folded"].value == Scalar(5, "one two", "one two", plain=False)
    inner = tree.entries["long key"].value
    assert isinstance(inner, Table)
    assert inner.entries["a"].value is inner.entries["b"].value


@pytest.mark.parametrize(
    "text", ["a: [1, 2\nb: 3", "a: 1\n---\nb: 2", "a: \x00", "a: *b", "- &a [*a]", "- &a 1\n- &a 2"]
)
def test_both_parsers_explain_mistakes_alike(
    parser: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = error(text)
    monkeypatch.setattr(yaml_tree, "_libyaml", None)
    assert message == error(text)


def test_a_mistake_in_a_huge_file_is_found() -> None:
    text = "a: 1\n" + "# a comment, one of many\n" * 40_000
    message = error(f"{text}b: c: d\n")
    assert message.startswith("c.yaml:40002:5: this is not YAML: ")
    assert "quote the value" in message
    assert error(f"{text}b: \x00").startswith("c.yaml:40002:4: this is not YAML: ")
    # The depth is found by libyaml, or by us: whichever comes first in the release installed.
    nested = error(f"{text}b: {'[' * 1_000_000}")
    assert nested.startswith("c.yaml:40002:")
    assert "the values are nested too deeply" in nested
    assert "check the brackets" in nested


def test_every_duplicate_key_is_named_with_both_lines() -> None:
    assert error("a: 1\nb: {c: 1,\n  c: 2}\na: 3\n").splitlines() == [
        "c.yaml:3: b.c: this key is already on line 2 - keep one of them",
        "c.yaml:4: a: this key is already on line 1 - keep one of them",
    ]


def test_an_alias_bomb_costs_nothing() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert "aliases expanded" in error("\n".join(lines))


def test_a_model_given_by_mistake_is_refused() -> None:
    assert "larger than 8 MiB" in error("x" * MAX_TEXT + "x")
