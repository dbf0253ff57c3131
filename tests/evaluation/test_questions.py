"""Files of questions: every line becomes a question, or one clear reason why it is none."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from PIL import Image

from cutline.errors import InputError
from cutline.evaluation.questions import MAX_LINE, BadRow, QuestionRow, read_rows, survey


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return tmp_path


def told(data: Path) -> list[object]:
    return [
        (row.number, row.text, row.answers, row.group) if isinstance(row, QuestionRow) else (row.number, row.why)
        for row in read_rows(data)
    ]


def test_lines_of_json(folder: Path) -> None:
    data = folder / "q.jsonl"
    long = b'{"image": "a.png", "question": "' + b"x" * MAX_LINE + b'"}'
    data.write_bytes(
        b"\n".join(
            [
                b'{"image": "a.png", "question": "What?", "answer": "a cat", "group": "pets"}',
                b"",
                b'{"image": "a.png", "question": "How many?", "answer": 3}',
                b'{"image": "a.png", "question": "Where?", "answer": [1, 2, 3, 4]}',
                b'{"image": "a.png", "question": "Who?", "answer": ["Ann", "Anne"]}',
                b'{"image": "a.png", "question": "Unknown?"}',
                long,
                b'{"image": "none.png", "question": "What?"}',
                b'{"image": "a.png", "question": " "}',
                b'{"image": "a.png", "question": 7}',
                b'{"image": "a\\u0000.png", "question": "What?"}',
                b'\xff{"image": "a.png"}',
                b'{"image": "a.png", "quest',
            ]
        )
    )
    found = told(data)
    assert found[:5] == [
        (1, "What?", ("a cat",), "pets"),
        (3, "How many?", ("3",), None),
        (4, "Where?", ("[1,2,3,4]",), None),
        (5, "Who?", ("Ann", "Anne"), None),
        (6, "Unknown?", (), None),
    ]
    reasons = {row.number: row.why for row in read_rows(data) if isinstance(row, BadRow)}
    assert list(reasons) == list(range(7, 14))
    for number, said in {7: "longer than 1 MiB", 8: "no file 'none.png'", 9: "is empty", 10: "Expected `str`"}.items():
        assert said in reasons[number]
    assert all("\n" not in why for why in reasons.values())
    (first, *_) = read_rows(data)
    assert isinstance(first, QuestionRow)
    assert first.read() == (folder / "a.png").read_bytes()
    assert survey(data)[1] == 12


def test_rows_of_csv(folder: Path) -> None:
    data = folder / "q.CSV"
    data.write_bytes(
        b"\xef\xbb\xbfImage,question,answer,group,note\r\n"
        b'a.png,"What, now?",a cat,pets,x\r\n'
        b'a.png,"Two\nlines?",,,\r\n'
        b"a.png,short\r\n"
        b"a.png,\xff,,,\r\n"
        b"none.png,What?,,,\r\n"
        b"\r\n"
        b"a.png,Last?,dog,,\r\n"
    )
    rows = list(read_rows(data))
    assert [(row.number, row.text, row.answers, row.group) for row in rows if isinstance(row, QuestionRow)] == [
        (2, "What, now?", ("a cat",), "pets"),
        (4, "Two\nlines?", (), None),
        (9, "Last?", ("dog",), None),
    ]
    assert [(row.number, row.why[:20]) for row in rows if isinstance(row, BadRow)] == [
        (5, "it has 2 cells, and "),
        (6, "it is no text in UTF"),
        (7, "there is no file 'no"),
    ]


def test_a_row_of_csv_that_is_too_long_is_one_bad_line(folder: Path) -> None:
    data = folder / "q.csv"
    data.write_bytes(b"image,question\na.png," + b"x" * (2 * MAX_LINE + 7) + b"\na.png,Last?\n")
    long, last = read_rows(data)
    assert isinstance(long, BadRow)
    assert (long.number, "field larger than" in long.why) == (2, True)
    assert isinstance(last, QuestionRow)
    assert (last.number, last.text) == (3, "Last?")


def test_what_is_no_data_is_said_at_once(folder: Path) -> None:
    for content, said in (
        (b"picture,text\r\n", "give the columns image, question"),
        (b"", "give the columns"),
        (b'"image"s,question', "is no CSV"),
    ):
        (folder / "q.csv").write_bytes(content)
        with pytest.raises(InputError, match=said):
            list(read_rows(folder / "q.csv"))
    for read in (lambda: list(read_rows(folder / "no.jsonl")), lambda: survey(folder / "no.jsonl")):
        with pytest.raises(InputError, match="cannot read"):
            read()


def test_lines_are_not_held(folder: Path) -> None:
    """So a file of a million takes as much memory as one of a few."""
    data = folder / "many.jsonl"
    data.write_bytes(b'{"image": "none.png", "question": "What is it?"}\n' * 3000)
    thousandths = (row for row in read_rows(data) if row.number % 1000 == 0)
    alive = [sum(type(one) is BadRow for one in gc.get_objects()) for _ in thousandths]
    assert alive == [1, 1, 1]
