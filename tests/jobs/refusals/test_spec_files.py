"""Files that are no specs, and overrides that are none."""

from pathlib import Path

import pytest
import yaml

from jobs.errors import SpecError
from jobs.spec import JobSpec
from jobs.spec.read import MAX_SPEC_BYTES
from tests.jobs.refusals.refused import check, spec_with


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(lines)


FILES: dict[str, tuple[str | bytes, str]] = {
    "a key twice": ("name: a\nname: b\n", "the key 'name' stands twice"),
    "a key twice, deeper": ("train: {epochs: 1, epochs: 2}\n", "the key 'epochs' stands twice"),
    "tabs": ("train:\n\tepochs: 3\n", "is not valid YAML"),
    "a billion laughs": (bomb(), "too many values"),
    "an alias to itself": ("a: &a [*a]\n", "too many values"),
    "an alias to nothing": ("a: *b\n", "is not valid YAML"),
    "too deep": ("a: " + "[" * 200 + "]" * 200, "nested too deeply"),
    "far too deep": ("a: " + "[" * 100_000, "nested too deeply"),
    "too large": ("# " + "x" * MAX_SPEC_BYTES, "larger than a job spec may be"),
    "not UTF-8": (b"name: \xff\xfe\n", "not UTF-8"),
    "UTF-16": ("name: a\n".encode("utf-16"), "not UTF-8"),
    "binary": (b"\x7fELF\x00\x01", "is not valid YAML"),
    "a Python object": ("name: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
    "a Python name": ("name: !!python/name:os.system\n", "is not valid YAML"),
    "a tag that does not fit": ("name: !!int abc\n", "is not valid YAML"),
    "a truth that is none": ("name: !!bool abc\n", "is not valid YAML"),
    "a date that is none": ("name: !!timestamp abc\n", "is not valid YAML"),
    "a number of 5000 digits": ("priority: " + "9" * 5000, "is not valid YAML"),
    "a set for a key": ("? !!set {a}\n: b\n", "is not valid YAML"),
    "a list for a key": ("? [a]\n: b\n", "a key must be text"),
    "two documents": ("a: 1\n---\nb: 2\n", "is not valid YAML"),
    "a list": ("- name: a\n", "must hold a mapping of keys"),
    "a text": ("name\n", "must hold a mapping of keys"),
    "nothing": ("", "must hold a mapping of keys"),
    "a number for a key": ("1: 2\n", "a key must be text"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_spec_is_refused(case: str, tmp_path: Path) -> None:
    content, message = FILES[case]
    path = tmp_path / "spec.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError) as caught:
        JobSpec.load(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a", "name": "b"}', "a key stands twice"),
        ('{"name": "a",}', "is not valid JSON"),
        ("name: a", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[1]", "must hold a mapping"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"train": {"optimizer": {"name": "adam", "lr": NaN}}}', "train.optimizer.lr"),
    ],
    ids=range(8),
)
def test_a_json_file_that_is_no_spec_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        JobSpec.load(path)
    assert message in str(caught.value)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("name: x\n")
    with pytest.raises(SpecError, match="is a folder"):
        JobSpec.load(tmp_path)
    with pytest.raises(SpecError, match=r"no such file.*did you mean '.*/digits.yaml'"):
        JobSpec.load(tmp_path / "digit.yaml")
    with pytest.raises(SpecError, match="no such file"):
        JobSpec.load(tmp_path / "nowhere" / "digits.yaml")
    with pytest.raises(SpecError, match="cannot read"):
        JobSpec.load(tmp_path / ("x" * 999))


@pytest.mark.parametrize(
    ("assignment", "path", "message"),
    [
        ("train.epochs", "--set", "key=value"),
        ("=3", "--set", "key=value"),
        ("train.epochs=[", "", "is not valid YAML"),
        ("train.epochs=2\nname: other", "--set", "one key"),
        ("train.epochs=two", "train.epochs", "got 'two'"),
        ("train.epocs=2", "train.epocs", "did you mean 'epochs'"),
        ("name.x=3", "name.x", "is a value and has no keys"),
        ("data.augment.5.rotate.degrees=3", "data.augment.5.rotate.degrees", "no such list entry"),
        ("data.augment.1=3", "data.augment.1", "0 to 0"),
        ("data.augment.x=3", "data.augment.x", "no such list entry"),
    ],
)
def test_a_bad_override_is_refused(assignment: str, path: str, message: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(spec_with({"data.augment": ["horizontal_flip"]})))
    with pytest.raises(SpecError) as caught:
        JobSpec.load(spec, [assignment])
    check(caught.value, path, (message,))
