"""The reader of atomic files keeps every cell as it is, and names the line of a broken file."""

import numpy as np
import pandas as pd
import pytest

from recbole_llm.data.reading.atomic import read_atomic, read_header
from recbole_llm.errors import UserError

HEADER = "item_id:token\ttitle:token_seq\tprice:float\n"


@pytest.fixture
def read(tmp_path):
    def read(content, **options):
        path = tmp_path / "toy.item"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_atomic(path, **options)

    return read


@pytest.fixture
def complaint(read, tmp_path):
    """Return complaint(content): the message of its UserError, without the file's name."""

    def complaint(content):
        with pytest.raises(UserError) as caught:
            read(content)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'toy.item'}, line ") and "\n" not in message
        return message.removeprefix(f"{tmp_path / 'toy.item'}, ")

    return complaint


# Quotes


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('"plain"', "plain"),
        ('"say ""hi"""', 'say "hi"'),
        ('""', ""),
        ('""""', '"'),
        ('5" pipe', '5" pipe'),
        ('5""', '5""'),
        ('"open', '"open'),
        ('shut"', 'shut"'),
        ('"a" b', '"a" b'),
        ('"a"b"', '"a"b"'),
        ('"a"" b', '"a"" b'),
        ('"', '"'),
        ('"Best" of "all"', '"Best" of "all"'),
        ("'single'", "'single'"),
        ("\u201ccurly\u201d", "\u201ccurly\u201d"),
        ("back\\slash\\", "back\\slash\\"),
    ],
)
@pytest.mark.parametrize("place", ["id", "title"])
def test_quotes(read, cell, text, place):
    """Quotes do not shift cells.

    By default, pandas reads past line ends after an open quote and fails on text after a pair.
    """
    row = f"{cell}\tx\t1" if place == "id" else f"x\t{cell}\t1"
    frame = read(f"{HEADER}before\tb\t0\n{row}\nafter\ta\t2\n")
    assert frame["price"].tolist() == [0, 1, 2]
    assert frame["item_id"].tolist() == ["before", text if place == "id" else "x", "after"]
    assert frame["title"].tolist() == ["b", text if place == "title" else "x", "a"]


def test_quoted_cells_may_hold_tabs_and_line_ends(read):
    frame = read(HEADER + '1\t"a\tb"\t3\n2\t"c\nd ""e"""\t4\n3\t5" x\t\n007\t\t7\nNA\tnull\t8\n')
    assert frame["item_id"].tolist() == ["1", "2", "3", "007", "NA"]
    assert frame["title"].tolist() == ["a\tb", 'c\nd "e"', '5" x', "", "null"]
    np.testing.assert_array_equal(frame["price"], [3, 4, np.nan, 7, 8])


def test_a_quote_excuses_no_ragged_line(complaint):
    assert complaint(HEADER + '1\tfine\t3\n2\t"c" d\te\t4\n').startswith(
        "line 3: expected 3 cells, found 4"
    )
    assert complaint(HEADER + '1\t"a\tb" c\t3\n').startswith("line 2: expected 3 cells, found 4")
    assert complaint(HEADER + '1\t"never\tshut\t3\n2\tx\t4\n').startswith(
        "line 2: expected 3 cells, found 4"
    )
    assert complaint(HEADER + '1\t"a\tb"\t3\n2\tx\ty\t4\n').startswith(
        "line 2: expected 3 cells, found 4"
    )


# Words that other readers take for a missing value, and ids that look like numbers

WORDS = [
    "NA",
    "N/A",
    "#N/A",
    "null",
    "NULL",
    "nan",
    "NaN",
    "-nan",
    "None",
    "<NA>",
    "n/a",
    "1.#IND",
    "",
    " ",
    "True",
]


def test_words_for_nothing_are_words(read, tmp_path):
    frame = read(HEADER + "".join(f"{word}\t{word}\t1\n" for word in WORDS))
    assert frame["item_id"].tolist() == WORDS
    assert frame["title"].tolist() == WORDS
    stock = pd.read_csv(
        tmp_path / "toy.item", sep="\t", engine="python", dtype={"item_id:token": str}
    )  # as RecBole reads
    assert stock["item_id:token"].isna().sum() >= 10


def test_ids_are_kept_as_they_are_written(read):
    ids = [
        "007",
        "0",
        "00",
        "1.0",
        "1.50",
        "1e5",
        "0x10",
        "+1",
        "-0",
        "1_000",
        "123456789012345678901234567890",
        " 1",
        "é",
        "名前",
    ]
    assert read(HEADER + "".join(f"{item}\tx\t1\n" for item in ids))["item_id"].tolist() == ids


# Bytes


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("tail", ["", "\n", "\n\n"])
def test_byte_order_mark_and_line_ends(read, tmp_path, mark, end, tail):
    text = "item_id:token\ttitle:token_seq\n1\ta b\n2\tc" + tail
    frame = read(mark + text.replace("\n", end).encode())
    assert frame.to_dict("list") == {"item_id": ["1", "2"], "title": ["a b", "c"]}
    assert read_header(tmp_path / "toy.item") == {"item_id": "token", "title": "token_seq"}


@pytest.mark.parametrize("char", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\0", "\xa0"])
def test_odd_characters_are_no_line_ends(read, char):
    frame = read(f"{HEADER}1\ta{char}b\t3\n2\t{char}c\t4\n3\td{char}\t5\n")
    assert frame["title"].tolist() == [f"a{char}b", f"{char}c", f"d{char}"]
    assert frame["price"].tolist() == [3, 4, 5]


def test_not_utf8_is_told_with_its_line(complaint):
    assert complaint(HEADER.encode() + b"1\tfine\t1\n2\tcaf\xe9\t2\n").startswith(
        "line 3: the bytes are not UTF-8"
    )
    assert complaint(
        b"\xef\xbb\xbf" + HEADER.replace("\n", "\r\n").encode() + b"1\t\xff\t1\r\n"
    ).startswith("line 2: ")


# Broken files


def test_a_tab_in_a_text_is_told_with_its_line(complaint):
    assert complaint(HEADER + "1\ta\t1\n2\tb\tc\t2\n3\td\t3\n").startswith(
        "line 3: expected 3 cells, found 4"
    )


def test_a_line_end_in_a_text_is_told_with_its_line(complaint):
    assert complaint(HEADER + "1\ta\t1\n2\tb\nc\t2\n").startswith(
        "line 3: expected 3 cells, found 2"
    )
    assert complaint(HEADER + "1\ta\t1\n\n2\tb\t2\n").startswith(
        "line 3: expected 3 cells, found 1"
    )


@pytest.mark.parametrize("rest", ["2", "2\tb"])
def test_a_cut_file_is_told_with_its_line(complaint, rest):
    assert complaint(HEADER + "1\ta\t1\n" + rest).startswith("line 3: expected 3 cells")


@pytest.mark.parametrize(
    "cell", ["12a", "NA", "nan", "1_000", "0x10", "1,5", "$3", "\uff11", '"5"', "-"]
)
def test_a_bad_number_is_told_with_its_line(complaint, cell):
    message = complaint(f"{HEADER}1\ta\t1\n2\tb\t\n3\tc\t{cell}\n4\td\t4\n")
    assert message == f"line 4: expected a number or an empty cell in column price, found {cell!r}"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "user_id",
        "user_id\titem_id",
        "a:token\tb:int",
        ":token",
        "a:token\t",
        "a:token\ta:float",
        "user_id:token item_id:tokens",
    ],
)
def test_a_bad_header_is_told(complaint, header):
    assert complaint(f"{header}\n1\t2\n").startswith("line 1: ")


def test_a_column_name_may_hold_a_colon(read):
    assert list(read("a:b:token\tc:float\nx\t1\n")) == ["a:b", "c"]


# Numbers


def test_times_are_exact(read):
    """Numbers are parsed exactly.

    Pandas' default parser errs in the last bit of some; RecBole's float32 errs by 64 seconds.
    """
    rng = np.random.default_rng(0)
    scattered = rng.standard_normal(500) * 10.0 ** rng.integers(-20, 20, 500)
    values = [
        0.1,
        1e-300,
        123456789012345678.0,
        1600000000.1234567,
        -5.0,
        *(1.6e9 + rng.random(500)),
        *scattered,
    ]
    cells = [repr(float(value)) for value in values]
    price = read(HEADER + "".join(f"{row}\tx\t{cell}\n" for row, cell in enumerate(cells)))["price"]
    assert price.dtype == np.float64
    assert price.tolist() == [float(cell) for cell in cells]


def test_an_empty_number_is_nan_and_text_stays_text(read):
    content = HEADER + "1\ta\t\n2\tb\t5.00\n"
    np.testing.assert_array_equal(read(content)["price"], [np.nan, 5])
    assert read(content, numbers=False)["price"].tolist() == ["", "5.00"]


def test_columns_are_chosen_by_name_in_the_order_of_the_file(read):
    frame = read(HEADER + "1\ta\t2\n", columns={"price", "item_id", "absent"})
    assert frame.to_dict("list") == {"item_id": ["1"], "price": [2.0]}


@pytest.mark.parametrize("content", [HEADER, HEADER.strip(), HEADER + "\n\n"])
def test_a_file_without_rows(read, content):
    frame = read(content)
    assert frame.shape == (0, 3)
    assert frame["price"].dtype == np.float64


SEPARATED = (
    "user_id:token{0}item_id:token{0}rating:float{0}timestamp:float\n"
    "u{0}007{0}1.5{0}10\n"
    "v{0}b{0}{0}11\n"
)


@pytest.mark.parametrize("separator", [" ", ",", ";", "|"])
def test_another_separator_is_read_where_it_is_named(tmp_path, separator):
    path = tmp_path / "toy.inter"
    path.write_text(SEPARATED.format(separator))
    assert list(read_header(path, separator)) == ["user_id", "item_id", "rating", "timestamp"]
    frame = read_atomic(path, separator=separator)
    assert frame["item_id"].tolist() == ["007", "b"] and frame["timestamp"].tolist() == [10, 11]
    assert np.isnan(frame["rating"][1])
    with pytest.raises(UserError) as caught:
        read_atomic(path)
    said = str(caught.value)
    assert "line 1: expected columns separated by tabs" in said
    assert f"--field_separator='{separator}'" in said and "\n" not in said


@pytest.mark.parametrize("separator", ["  ", ", ", " \u3000"])
def test_separators_of_several_characters_are_told_too(tmp_path, separator):
    path = tmp_path / "toy.inter"
    path.write_text(SEPARATED.format(separator), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_atomic(path)
    assert "write a tab between the cells of every line" in str(caught.value)
    assert "field_separator" not in str(caught.value), "which is one character"


def test_a_file_with_tabs_is_read_by_tabs_whatever_the_others_have(tmp_path):
    path = tmp_path / "toy.item"
    path.write_text("item_id:token\ttitle:token_seq\nb\toak lamp, red\n")
    for separator in (" ", ","):
        frame = read_atomic(path, separator=separator)
        assert frame["title"].tolist() == ["oak lamp, red"]


def test_quoted_cells_hold_separators(tmp_path):
    path = tmp_path / "toy.item"
    path.write_text('item_id:token,title:token_seq\na,"lamp, oak"\nb,"a ""q"""\n')
    assert read_atomic(path, separator=",")["title"].tolist() == ["lamp, oak", 'a "q"']
    path.write_text("item_id:token,title:token_seq\na,lamp, oak\n")
    with pytest.raises(UserError, match="line 2: expected 2 cells, found 3 .a comma or line end"):
        read_atomic(path, separator=",")


@pytest.mark.parametrize("separator", ["", "::", ":", "a", '"'])
def test_what_cannot_separate_is_told(tmp_path, separator):
    path = tmp_path / "toy.inter"
    path.write_text(SEPARATED.format(","))
    with pytest.raises(UserError, match="field_separator: expected one character"):
        read_atomic(path, separator=separator)
