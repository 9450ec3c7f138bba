"""The reader of YAML documents: data, lines, faults; and that no text makes it raise."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deepseek.core.yaml_document import MAX_CHARACTERS, read_yaml


def test_data_is_what_safe_load_gives() -> None:
    text = (
        "a: 1\nb: [x, 2.5, true, null, 2024-01-02]\nc:\n  d: 'text'\n  e: |\n    lines\n    here\n"
    )
    assert read_yaml(text).data == yaml.safe_load(text)


def test_merged_mappings_give_way_to_own_keys_and_earlier_ones_win() -> None:
    text = (
        "one: &one {a: 1, b: 1}\ntwo: &two {b: 2, c: 2}\n"
        "both: {<<: [*one, *two], c: 3}\nsingle:\n  <<: *one\n  a: 9\n"
    )
    document = read_yaml(text)
    assert document.data == yaml.safe_load(text)
    assert document.faults == ()


def test_every_key_knows_its_line() -> None:
    document = read_yaml("a:\n  b: 1\n  c:\n    - x\n    - y: 2\n")
    assert document.line_of(("a", "b")) == 2
    assert document.line_of(("a", "c", 1, "y")) == 5
    assert document.line_of(("a", "missing", "deep")) == 1


def test_a_repeated_key_is_a_fault_on_the_second_line() -> None:
    (fault,) = read_yaml("m:\n  a: 1\n  b: 2\n  a: 3\n").faults
    assert (fault.line, str(fault)) == (4, "m.a: is given twice; it is already on line 2")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1, 2\n", 3, "not valid YAML"),
        ("a:\n\tb: 1\n", 2, "indent with spaces, not tabs"),
        ("a: b: c\n", 1, "put a value that contains ': ' in quotes"),
        ("a: 1\n  b: 2\n", 2, "check the indentation"),
        ("a: *nowhere\n", 1, "define it before"),
        ("a: 1\n---\nb: 1\n", 2, "one document per file"),
        ("a: \x07\n", 1, "YAML forbids"),
        ("a: 1\n7: x\n", 2, "the key '7' is not text"),
        ("on: x\n", 1, "the key 'on' is not text"),
        ("? [a, b]\n: x\n", 1, "the key 'a list or mapping' is not text"),
        ("a: !!python/object:os.system {}\n", 1, "is not supported"),
        ("a: !secret x\n", 1, "the tag '!secret' is not supported"),
        ("a:\n  b: 2024-13-45\n", 2, "put it in quotes"),
        ("a: .inf\n", 1, "finite"),
        ("a: .nan\n", 1, "finite"),
        ("a: " + "9" * 5000 + "\n", 1, "cannot be read"),
        ("a: {<<: 3}\n", 1, "merges mappings only"),
        ("[" * 5000, 1, "nested too deeply"),
        ("- " * 200 + "x", 1, "nested too deeply"),
        ("a: &a [*a]\n", 1, "nested too deeply"),
        ("a: &a {<<: *a}\n", 1, "nested too deeply"),
        ("#" * (MAX_CHARACTERS + 1), 1, "is longer than"),
    ],
)
def test_a_bad_document_is_a_fault_with_its_line_and_remedy(
    text: str, line: int, words: str
) -> None:
    fault = read_yaml(text).faults[0]
    assert fault.line == line
    assert words in fault.message


@pytest.mark.parametrize("kind", ["list", "merge"])
def test_an_alias_bomb_is_refused_before_it_grows(kind: str) -> None:
    lines = ["a0: &a0 [x, x]" if kind == "list" else "a0: &a0 {k: v}"]
    for level in range(1, 30):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        body = f"[{aliases}]" if kind == "list" else f"{{<<: [{aliases}]}}"
        lines.append(f"a{level}: &a{level} {body}")
    (fault,) = read_yaml("\n".join(lines)).faults
    assert "aliases" in fault.message


def test_an_empty_text_has_no_data_and_no_faults() -> None:
    assert read_yaml("# nothing\n").data is None
    assert read_yaml("").faults == ()


@given(st.text(max_size=200))
def test_no_text_makes_the_reader_raise(text: str) -> None:
    document = read_yaml(text)
    assert all(fault.line >= 1 and fault.message for fault in document.faults)


@given(st.text(alphabet="ab:-[]{}&*<!|>?\n '\"#,1.", max_size=60))
def test_no_yaml_punctuation_makes_the_reader_raise(text: str) -> None:
    assert all(str(fault) for fault in read_yaml(text).faults)
