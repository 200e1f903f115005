"""Files, folders and hub datasets to rows; whatever is wrong with them is one message."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from gad.config.data import Columns, Source
from gad.data import load_examples, load_prompts
from gad.data import text as text_reader
from gad.data.rows import RawRow
from gad.data.sources import read_rows
from gad.errors import DataError, MissingExtra

Write = Callable[..., str]
ROW = {"id": "a", "prompt": "What is ice?", "completion": "Frozen water."}


def rows(index: int, count: int) -> list[dict[str, str]]:
    return [{"id": str(i), "prompt": f"question {i}", "completion": f"answer {i}"} for i in range(index, index + count)]


def ids(source: Source) -> list[str]:
    return [example.prompt.id for example in load_examples(source).examples]


def message(path: str, **source: object) -> str:
    with pytest.raises(DataError) as caught:
        load_examples(Source.model_validate({"path": path, **source}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_byte_order_mark_crlf_blank_lines_and_no_last_line_end_are_fine(write: Write) -> None:
    first, second = (json.dumps(row).encode() for row in rows(0, 2))
    path = write("a.jsonl", b"\xef\xbb\xbf" + first + b"\r\n\r\n  \n" + second)
    found = list(read_rows(Source(path=path)))
    assert [row.place.number for row in found] == [1, 4]
    assert ids(Source(path=path)) == ["0", "1"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x00\x01\x02", ["NUL byte at byte 0", "UTF-8"]),
        ('{"prompt": "x"}'.encode("utf-16-le"), ["NUL byte at byte 1"]),
        ('{"prompt": "x"}'.encode("utf-16"), ["UTF-16", "save it as UTF-8"]),
        (b"PAR1\x15", ["is a Parquet file", "format: parquet"]),
        (b"\x1f\x8b\x08\x00", ["gzip", "unpack"]),
        (b"", ["no rows"]),
        (b"\n  \n", ["no rows"]),
    ],
)
def test_a_file_that_is_no_jsonl_is_named_with_the_way_out(write: Write, data: bytes, words: list[str]) -> None:
    path = write("data.jsonl", data)
    text = message(path)
    assert path in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "b", "prom', ["not JSON", "cut off"]),
        ('{"prompt": "x", }\n', ["not JSON", "(column "]),
        ('[{"prompt": "x"}]\n', ["not a JSON object", "a list", "one object a line"]),
        ("[\n", ["one JSON array"]),
        ("3\n", ["not a JSON object", "a number"]),
        ("null\n", ["not a JSON object", "null"]),
        ('{"prompt": "x", "completion": "y", "score": NaN}\n', ["NaN"]),
        ('{"prompt": "x", "completion": "y", "score": -Infinity}\n', ["-Infinity"]),
        ('{"prompt": "x", "n": ' + "9" * 5000 + "}\n", ["too many digits"]),
        ("[" * 100_000 + "\n", ["nested too deeply"]),
        ('{"prompt": "x", "prompt": "y", "completion": "z"}\n', ["given twice", "'prompt'"]),
        ('{"prompt": "a\\ud800", "completion": "z"}\n', ["surrogate", "character 1"]),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_reason_and_can_be_skipped(
    write: Write, line: str, words: list[str]
) -> None:
    path = write("data.jsonl", ROW, line)
    text = message(path)
    assert text.startswith(f"{path}:2: ")
    assert all(word in text for word in [*words, "on_bad_rows: skip"]), text

    loaded = load_examples(Source(path=path), on_bad_rows="skip")
    assert [example.prompt.id for example in loaded.examples] == ["a"]
    (dropped,) = loaded.origin.dropped
    assert dropped.count == 1
    assert dropped.reason.startswith("bad row, ")
    assert dropped.first[0].startswith(f"{path}:2: ")
    assert loaded.origin.rows == 2


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_wrong_encoding_names_the_byte_of_the_file(write: Write, mark: bytes) -> None:
    good = mark + b'{"prompt": "x", "completion": "y"}\n'
    bad = '{"prompt": "caf\u00e9"}'.encode("latin-1")
    path = write("data.jsonl", good, bad + b"\n")
    offset = len(good) + bad.index(b"\xe9")
    assert f":2: not UTF-8: byte 0xe9 at byte {offset} of the file" in message(path)
    data = Path(path).read_bytes()
    assert data[offset] == 0xE9


def test_wrong_encoding_on_the_first_line_behind_a_byte_order_mark(write: Write) -> None:
    path = write("data.jsonl", b'\xef\xbb\xbf{"prompt": "\xe9"}\n')
    assert "at byte 15 of the file" in message(path)
    assert Path(path).read_bytes()[15] == 0xE9


def test_a_line_without_end_is_not_taken_into_memory(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_reader, "LONGEST_LINE", 2**20)
    path = write("data.jsonl", b'{"prompt": "' + b"x" * (5 * 2**20) + b'"}\n', ROW, b'{"prompt": "\xe9"}\n')
    assert "line too long: more than 1 MiB" in message(path)
    loaded = load_examples(Source(path=path), on_bad_rows="skip")
    assert [example.prompt.id for example in loaded.examples] == ["a"]
    assert {dropped.reason for dropped in loaded.origin.dropped} == {"bad row, line too long", "bad row, not UTF-8"}
    offset = Path(path).read_bytes().index(b"\xe9")
    assert f"at byte {offset} of" in loaded.origin.dropped[1].first[0]


def test_a_line_of_just_the_longest_length_is_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_reader, "LONGEST_LINE", len(json.dumps(ROW)) + 1)
    assert ids(Source(path=write("data.jsonl", ROW))) == ["a"]


@pytest.mark.parametrize(
    ("name", "near", "words"),
    [
        ("trian.jsonl", "train.jsonl", ["no such file", "did you mean", "train.jsonl"]),
        ("replies.csv", "train.jsonl", ["no such file", "put it there, or give another path in the run file"]),
        ("no/where.jsonl", "train.jsonl", ["no such file", "no is not there either: give another path"]),
    ],
)
def test_missing_file(write: Write, tmp_path: Path, name: str, near: str, words: list[str]) -> None:
    write(near, ROW)
    text = message(str(tmp_path / name))
    assert all(word in text for word in words), text


def test_a_path_in_a_folder_that_is_there_is_no_hub_name(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("data/train.jsonl", ROW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "data/tran: no such file" in message("data/tran")
    assert "owner/file.json: no such file" in message("owner/file.json")


def test_hub_name_without_datasets_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"'owner/name' is no file or folder here.*pip install 'gad\[hub\]'"):
        load_examples(Source(path="owner/name"))


def test_hub_that_cannot_be_reached_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "get_dataset_split_names", unreachable)
    text = message("owner/name")
    assert "owner/name: no such file or folder here" in text
    assert "no route to host" in text
    assert "HF_TOKEN" in text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [None, 3])
def test_hub_dataset_is_read_whole_or_streamed(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write("set/train.jsonl", *rows(0, 5))
    write("set/test.jsonl", *rows(5, 2))
    folder = str(tmp_path / "set")
    assert ids(Source(path=folder, format="hub", limit=limit)) == ["0", "1", "2", "3", "4"][:limit]
    assert ids(Source(path=folder, format="hub", split="test", limit=limit)) == ["5", "6"]
    assert "no split 'tset', only train, test; did you mean 'test'?" in message(folder, format="hub", split="tset")
    columns = Columns(prompt="promt")
    with pytest.raises(DataError, match="did you mean 'prompt'"):
        load_examples(Source(path=folder, format="hub", columns=columns))


def test_folder_without_data(tmp_path: Path) -> None:
    assert "no data files" in message(str(tmp_path))
    assert "holds nothing" in message(str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    assert "notes.txt" in message(str(tmp_path))


def test_something_else_than_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in message(str(tmp_path / "pipe"))


def test_settings_that_do_not_fit_a_file_are_refused(write: Write) -> None:
    path = write("a.jsonl", ROW)
    assert "leave out `split: test`" in message(path, split="test")
    assert "`revision` is for hub datasets" in message(path, revision="main")
    assert "cannot be read as Parquet" in message(path, format="parquet")


def test_limit_reads_the_first_rows_only(write: Write) -> None:
    path = write("a.jsonl", *rows(0, 3), "torn")
    loaded = load_examples(Source(path=path, limit=3))
    assert loaded.origin.rows == 3


def test_csv_with_quotes_line_ends_and_its_errors(write: Write) -> None:
    path = write("a.csv", 'id,prompt,completion,finished\n1,"two\nlines","say ""hi""",true\n2,b,c,false\n3,x\n')
    assert f"{path}:5: wrong number of cells: 2, the header has 4" in message(path)
    loaded = load_examples(Source(path=path), on_bad_rows="skip")
    (example,) = loaded.examples
    assert example.prompt.text == "two\nlines"
    assert example.replies[0].text == 'say "hi"'
    assert [(d.reason, d.count) for d in loaded.origin.dropped] == [
        ("truncated reply", 1),
        ("bad row, wrong number of cells", 1),
    ]
    assert "not UTF-8: byte 0xe9 at byte 18" in message(write("b.csv", b"prompt,completion\n\xe9,x\n"))
    assert "two columns of one name" in message(write("c.csv", "prompt,prompt\na,b\n"))
    assert "not CSV" in message(write("d.csv", 'prompt,completion\n"a"b,c\n'))
    assert ids(Source(path=write("e.tsv", "id\tprompt\tcompletion\n7\ta\tb\n"))) == ["7"]


def table(count: int, **more: pa.Array) -> pa.Table:
    return pa.table({**pa.Table.from_pylist(rows(0, count)).to_pydict(), **more})


def test_parquet_by_name_by_content_and_by_setting(tmp_path: Path) -> None:
    pa.parquet.write_table(table(1200), tmp_path / "a.parquet", row_group_size=500)
    assert ids(Source(path=str(tmp_path / "a.parquet"))) == [str(i) for i in range(1200)]
    other = tmp_path / "a.bin"
    other.write_bytes((tmp_path / "a.parquet").read_bytes())
    assert len(ids(Source(path=str(other)))) == 1200
    assert len(ids(Source(path=str(other), format="parquet"))) == 1200


def test_bad_parquet_rows_are_numbered_through(tmp_path: Path) -> None:
    prompts = [f"p{i}" if i != 700 else None for i in range(1000)]
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"prompt": prompts, "completion": ["x"] * 1000}), path)
    assert f"{path}: row 701: wrong type: prompt is null" in message(str(path))
    skipped = load_examples(Source(path=str(path)), on_bad_rows="skip")
    assert len(skipped.examples) == 999
    assert skipped.origin.rows == 1000


def test_damaged_and_empty_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(table(500), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as Parquet" in message(str(path))
    path.write_bytes(whole[:100] + b"\xff" * 400 + whole[500:])
    assert "cannot be read as Parquet" in message(str(path))
    pa.parquet.write_table(table(5).slice(0, 0), path)
    assert "no rows" in message(str(path))


def test_parquet_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"prompt": pa.array([b"a"]), "completion": ["x"]}), path)
    assert "prompt is bytes" in message(str(path))
    pa.parquet.write_table(pa.table({"prompt": pa.array([1.5]), "completion": ["x"]}), path)
    assert "prompt is a number (1.5)" in message(str(path))
    encoded = pa.array(["a", "b"]).dictionary_encode()
    pa.parquet.write_table(pa.table({"prompt": encoded, "completion": pa.array(["x", "y"], pa.large_string())}), path)
    assert len(load_examples(Source(path=str(path))).examples) == 2


def test_a_missing_parquet_column_is_named_before_any_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(table(2), path)
    text = message(str(path), columns={"completion": "completions"})
    assert "no column 'completions' (completion) among id, prompt, completion; did you mean 'completion'?" in text
    only_prompts = Source(path=str(path), columns=Columns(completion="completions"))
    assert len(load_prompts(only_prompts).prompts) == 2


def save_to_disk(folder: Path, table: pa.Table, shards: int = 1) -> None:
    """The files that `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    size = -(-table.num_rows // shards)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        part = table.slice(i * size, size)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_saved_sets(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "one", table(10), shards=3)
    assert ids(Source(path=str(tmp_path / "one"))) == [str(i) for i in range(10)]
    assert "leave out `split: train`" in message(str(tmp_path / "one"), split="train")

    save_to_disk(tmp_path / "long", table(1200).combine_chunks())
    found = list(read_rows(Source(path=str(tmp_path / "long"))))
    assert [(row.place.number, row.values["id"]) for row in found if isinstance(row, RawRow)] == [
        (i + 1, str(i)) for i in range(1200)
    ]

    save_to_disk(tmp_path / "two/train", table(4))
    save_to_disk(tmp_path / "two/test", table(2))
    (tmp_path / "two/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(ids(Source(path=str(tmp_path / "two")))) == 4
    assert len(ids(Source(path=str(tmp_path / "two"), split="test"))) == 2
    assert "only train, test" in message(str(tmp_path / "two"), split="validation")

    (tmp_path / "one/data-00001-of-00003.arrow").unlink()
    assert "data-00001-of-00003.arrow missing" in message(str(tmp_path / "one"))
    (tmp_path / "one/state.json").write_text("{")
    assert "state.json is missing or damaged" in message(str(tmp_path / "one"))


@pytest.mark.filterwarnings("ignore")
def test_sets_saved_by_datasets_itself(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    messages = [[{"role": "user", "content": f"q{i}"}] for i in range(6)]
    saved = datasets.Dataset.from_dict({"content": messages, "teacher_response": [f"a{i}" for i in range(6)]})
    saved.select([4, 2]).save_to_disk(tmp_path / "some")
    loaded = load_examples(Source(path=str(tmp_path / "some")))
    assert [example.prompt.text for example in loaded.examples] == ["q4", "q2"]
    assert [example.replies[0].text for example in loaded.examples] == ["a4", "a2"]
    datasets.DatasetDict({"a": saved, "b": saved}).save_to_disk(tmp_path / "both")
    assert "has the splits a, b: choose one" in message(str(tmp_path / "both"))


def test_a_saved_set_does_not_reach_outside_its_folder(write: Write, tmp_path: Path) -> None:
    save_to_disk(tmp_path / "outside", table(3))
    state = {"_data_files": [{"filename": "../outside/data-00000-of-00001.arrow"}]}
    write("inside/state.json", json.dumps(state))
    assert "missing" in message(str(tmp_path / "inside"))


def test_plain_folders_follow_the_hubs_names(write: Write, tmp_path: Path) -> None:
    (tmp_path / "a/data").mkdir(parents=True)
    pa.parquet.write_table(table(3), tmp_path / "a/data/train-00000-of-00002.parquet")
    pa.parquet.write_table(table(5).slice(3), tmp_path / "a/data/train-00001-of-00002.parquet")
    pa.parquet.write_table(table(9).slice(8), tmp_path / "a/data/validation-00000-of-00001.parquet")
    write("a/README.md", "---\nlicense: mit\n---\n")
    write("a/.cache/train.jsonl", "not data")
    assert ids(Source(path=str(tmp_path / "a"))) == ["0", "1", "2", "3", "4"]
    assert ids(Source(path=str(tmp_path / "a"), split="validation")) == ["8"]

    write("b/training_set.jsonl", *rows(0, 2))
    write("b/my-test.jsonl", *rows(2, 1))
    write("b/held_out.jsonl", *rows(3, 1))
    assert ids(Source(path=str(tmp_path / "b"))) == ["0", "1"]
    assert ids(Source(path=str(tmp_path / "b"), split="test")) == ["2"]
    assert ids(Source(path=str(tmp_path / "b"), split="held_out")) == ["3"]

    write("c/1.jsonl", *rows(0, 1))
    write("c/2.jsonl", *rows(1, 1))
    assert ids(Source(path=str(tmp_path / "c"))) == ["0", "1"]

    write("d/valid/x.jsonl", *rows(0, 1))
    assert ids(Source(path=str(tmp_path / "d"))) == ["0"]

    write("e/test/train/x.jsonl", *rows(0, 1))
    assert ids(Source(path=str(tmp_path / "e"), split="train")) == ["0"]


def test_folders_of_several_datasets_are_not_mixed(write: Write, tmp_path: Path) -> None:
    write("a/en/train.jsonl", *rows(0, 1))
    write("a/fr/train.jsonl", *rows(1, 1))
    assert "en/train.jsonl, fr/train.jsonl" in message(str(tmp_path / "a"))
    assert ids(Source(path=str(tmp_path / "a/fr"))) == ["1"]
    write("b/train.jsonl", *rows(0, 1))
    write("b/train.csv", "prompt,completion\na,b\n")
    assert "differ in format" in message(str(tmp_path / "b"))


def test_format_of_a_folder(write: Write, tmp_path: Path) -> None:
    write("a/train.jsonl", *rows(0, 1))
    assert ids(Source(path=str(tmp_path / "a"), format="jsonl")) == ["0"]
    assert "holds jsonl files, not parquet" in message(str(tmp_path / "a"), format="parquet")


def test_arrow_files_by_content_and_by_setting(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table(3).schema) as writer:
        writer.write_table(table(3))
    assert ids(Source(path=str(path))) == ["0", "1", "2"]
    assert ids(Source(path=str(path), format="arrow")) == ["0", "1", "2"]
    path.write_bytes(path.read_bytes()[:200])
    assert "cannot be read as Arrow" in message(str(path))


def test_damaged_lists_of_saved_files(write: Write, tmp_path: Path) -> None:
    write("a/state.json", '{"_data_files": [{"name": "x"}]}')
    assert "_data_files has no file names" in message(str(tmp_path / "a"))
    write("b/dataset_dict.json", '{"splits": "train"}')
    assert "splits is no list" in message(str(tmp_path / "b"))


def test_impossible_paths_are_one_message() -> None:
    assert "File name too long" in message("x" * 5000)
    assert "no such file" in message("a\0b")


def test_rows_are_read_one_by_one(write: Write) -> None:
    """The second row is bad; whoever only takes the first never learns of it."""
    first = next(iter(read_rows(Source(path=write("a.jsonl", ROW, "torn")))))
    assert isinstance(first, RawRow)
    assert first.values == ROW
