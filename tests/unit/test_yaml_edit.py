"""Single keys of YAML texts are set, and every other character stays."""

from __future__ import annotations

from difflib import unified_diff
from typing import Any

import pytest
import yaml

from llamaswap_py.config.yaml_edit import Place, UneditableError, with_key

TEXT = """\
# top
models:
  a:
    model: x.gguf   # note

  # about b
  b:
    model: y
    args:
      c: 1   # ctx
      n-gpu-layers: 3

    # below
  flow: {model: z, args: {ctx-size: 5}}  # f
  trailing: {model: "z: q", }
  none: {}
  empty:   # nothing
  tilde: ~
  base: &base
    model: q
    args: &args {x: 1}
  merged:
    <<: *base
  alias:
    args: *args
  "quo ted:":
    model: x
    extra:
    - --a
    - |
      lit
      b

  last:
    model: q
    variants:
    - name: lean
      args: {ctx-size: 1}
    - name: second
      device: x

# end
memory: {margin: 1GiB}"""
CONTEXT = ("args", "ctx-size")


def value_at(text: str, place: Place) -> Any:
    found = yaml.safe_load(text)
    for step in place:
        if isinstance(found, list):
            found = next(one for one in found if one["name"] == step)
        else:
            found = found.get(step, found.get("c"))
    return found


@pytest.mark.parametrize(
    ("place", "new"),
    [
        (("models", "a", *CONTEXT), "    args:\n      ctx-size: 7\n"),
        (("models", "b", *CONTEXT), "      c: 7   # ctx\n"),
        (("models", "b", "args", "n-cpu-moe"), "      n-cpu-moe: 7\n"),
        (("models", "flow", *CONTEXT), "  flow: {model: z, args: {ctx-size: 7}}  # f\n"),
        (("models", "flow", "args", "q"), "  flow: {model: z, args: {ctx-size: 5, q: 7}}  # f\n"),
        (
            ("models", "trailing", *CONTEXT),
            '  trailing: {model: "z: q", args: {ctx-size: 7}, }\n',
        ),
        (("models", "none", *CONTEXT), "  none: {args: {ctx-size: 7}}\n"),
        (("models", "empty", *CONTEXT), "    args:\n      ctx-size: 7\n"),
        (("models", "tilde", *CONTEXT), "  tilde:\n    args:\n      ctx-size: 7\n"),
        (("models", "merged", *CONTEXT), "    args:\n      ctx-size: 7\n"),
        (("models", "quo ted:", *CONTEXT), "    args:\n      ctx-size: 7\n"),
        (("models", "last", "variants", "lean", *CONTEXT), "      args: {ctx-size: 7}\n"),
        (("models", "last", "variants", "second", *CONTEXT), "      args:\n        ctx-size: 7\n"),
        (("models", "new:one", *CONTEXT), '  "new:one":\n    args:\n      ctx-size: 7\n'),
        (("models", "a", "model"), "    model: 7   # note\n"),
        (("models", "alias", "args"), "    args: 7\n"),
        (("memory", "cache_ram"), "memory: {margin: 1GiB, cache_ram: 7}"),
        (("policy", "max_loaded"), "policy:\n  max_loaded: 7\n"),
    ],
)
def test_a_key_is_set_and_nothing_else_changes(place: Place, new: str) -> None:
    text = with_key(TEXT, place, 7)
    assert value_at(text, place) == 7
    assert new in text
    lines = list(unified_diff(TEXT.splitlines(), text.splitlines(), n=0))[2:]
    added, removed = ([one for one in lines if one[0] == sign] for sign in "+-")
    assert len(added) == new.rstrip("\n").count("\n") + 1
    assert len(removed) <= 1


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("", True, "a:\n  b: true\n"),
        ("# x", "t: x", '# x\na:\n  b: "t: x"\n'),
        ("a:", "yes", 'a:\n  b: "yes"\n'),
        ("a: {b: 1}", "~/x-1.gguf", "a: {b: ~/x-1.gguf}"),
    ],
)
def test_values_and_small_files(text: str, value: str | bool, expected: str) -> None:
    assert with_key(text, ("a", "b"), value) == expected
    assert yaml.safe_load(expected)["a"]["b"] == value


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (("models", "alias", *CONTEXT), r"`models\.alias\.args` stands elsewhere"),
        (("models", "a", "model", "x"), r"`models\.a\.model` is not a mapping"),
        (("models", "last", "variants", "third", "x"), "has no 'third'"),
    ],
)
def test_what_would_change_something_else_is_refused(place: Place, says: str) -> None:
    with pytest.raises(UneditableError, match=says):
        with_key(TEXT, place, 7)
