"""The command line reads atomic files with other separators, pre-split files and repeated rows."""

import pytest
from shops import rows_of

from recbole_llm import cli

ITEMS = [f"i{number}" for number in range(12)]
WORDS = "oak pine steel blue wool clay glass tin felt silk cork jute".split()


def histories(users=15, events=7):
    def walk(user):
        return [ITEMS[(user * 5 + place * (1 + user % 3)) % 12] for place in range(events)]

    return {f"u{user}": walk(user) for user in range(users)}


def write_item(folder, rows=None):
    rows = rows or [(item, f"{word} thing") for item, word in zip(ITEMS, WORDS, strict=True)]
    lines = ["item_id:token\ttitle:token_seq", *("\t".join(row) for row in rows)]
    (folder / "shop.item").write_text("\n".join(lines) + "\n")


def write_inter(folder, separator="\t", columns=("user_id", "item_id", "timestamp")):
    kinds = ("token", "token", "float")
    lines = [separator.join(f"{name}:{kind}" for name, kind in zip(columns, kinds, strict=True))]
    for user, items in histories().items():
        lines += [separator.join((user, item, str(n))) for n, item in enumerate(items)]
    (folder / "shop.inter").write_text("\n".join(lines) + "\n")


def write_split(folder, history):
    """Write leave-one-out files.

    history : (items so far) -> the cell of the list.
    """
    parts = {"train": [], "valid": [], "test": []}
    for user, items in histories().items():
        for end in range(1, 7):
            part = {5: "valid", 6: "test"}.get(end, "train")
            parts[part].append(f"{user}\t{history(items[:end])}\t{items[end]}")
    for part, rows in parts.items():
        header = "user_id:token\titem_id_list:token_seq\titem_id:token"
        (folder / f"shop.{part}.inter").write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture
def shop(tmp_path, monkeypatch):
    folder = tmp_path / "dataset" / "shop"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    write_item(folder)
    return folder


def run(model, *more):
    return cli.main([f"--model={model}", "--dataset=shop", "--show_progress=false", *more])


@pytest.fixture
def told(caplog):
    """Return told(), which returns what was logged since its last call."""
    caplog.set_level("INFO")

    def read():
        text = caplog.text
        caplog.clear()
        return text

    return read


SPLIT = ["--benchmark_filename=[train,valid,test]", "--beside=[]"]


@pytest.mark.parametrize(
    ("separator", "name"),
    [(" ", "spaces"), (",", "commas"), (";", "semicolons"), ("|", "pipes")],
)
def test_files_of_another_separator(shop, separator, name, capsys):
    """The line says which option to add, which also works for the models beside it."""
    write_inter(shop, separator)
    assert run("LIR", "--beside=[Pop]") == 2
    error = capsys.readouterr().err
    assert f"found them separated by {name}" in error and error.count("\n") == 1, error
    assert f"set --field_separator='{separator}'" in error
    assert run("LIR", "--beside=[Pop]", f"--field_separator={separator}") == 0
    here = rows_of(shop.parents[1])
    write_inter(shop)
    assert run("LIR", "--beside=[Pop]") == 0
    there = rows_of(shop.parents[1])[len(here) :]
    assert [row["test"] for row in here] == [row["test"] for row in there]


@pytest.mark.parametrize("column", ["time", "unix_ts"])
def test_a_time_under_another_name_is_told(shop, column, told):
    write_inter(shop, columns=("user_id", "item_id", column))
    assert run("LIR", "--beside=[]") == 0
    assert f"if {column} is the time, set --TIME_FIELD={column}" in told()
    assert run("LIR", "--beside=[]", f"--TIME_FIELD={column}") == 0
    assert "is the order of time" not in told()


def filled(pad, side):
    def cell(items):
        fill = [pad] * (6 - len(items))
        return " ".join(fill + items if side == "left" else items + fill)

    return cell


@pytest.mark.parametrize("model", ["LIR", "SASRec"])
@pytest.mark.parametrize(("pad", "side"), [("0", "right"), ("[PAD]", "left"), ("x", "right")])
def test_padded_lists_give_what_bare_ones_give(shop, model, pad, side, told):
    quick = [] if model == "LIR" else ["--epochs=1", "--train_batch_size=32"]
    write_split(shop, filled(pad, side))
    assert run(model, *SPLIT, *quick) == 0
    assert f"{pad!r} in item_id_list is taken for padding" in told()
    write_split(shop, " ".join)
    assert run(model, *SPLIT, *quick, "--checkpoint_dir=bare") == 0
    assert "padding" not in told()
    (padded,) = rows_of(shop.parents[1])
    (shop.parents[1] / "saved").rename(shop.parents[1] / "padded")
    (shop.parents[1] / "bare").rename(shop.parents[1] / "saved")
    (bare,) = rows_of(shop.parents[1])
    assert padded["test"] == bare["test"] and padded["run"] == bare["run"]


@pytest.mark.parametrize("model", ["LIR", "SASRec", "BPR", "Pop"])
def test_rows_without_a_history_are_no_cases_of_any_model(shop, model, told):
    quick = [] if model in ("LIR", "Pop") else ["--epochs=1", "--train_batch_size=32"]
    write_split(shop, lambda items: "" if items[0] == "i0" else " ".join(items))
    empty = sum(items[0] == "i0" for items in histories().values())
    assert run(model, *SPLIT, *quick) == 0
    assert f"{6 * empty} rows have an empty item_id_list (train {4 * empty}" in told()
    (row,) = rows_of(shop.parents[1])
    assert row["cases"] == len(histories()) - empty


def test_split_files_without_lists_say_what_lacks(shop, capsys):
    for part in ("train", "valid", "test"):
        (shop / f"shop.{part}.inter").write_text("user_id:token\titem_id:token\nu0\ti1\n")
    assert run("BPR", *SPLIT) == 2
    error = capsys.readouterr().err
    assert "shop.train.inter: expected a column item_id_list:token_seq" in error
    assert "leave benchmark_filename out" in error and error.count("\n") == 1


@pytest.mark.parametrize("differ", [False, True])
def test_several_rows_of_an_item_are_told(shop, differ, told):
    write_inter(shop)
    rows = [(item, f"{word} thing") for item, word in zip(ITEMS, WORDS, strict=True)]
    again = ("i1", "another name" if differ else "pine thing")
    write_item(shop, [("i0", ""), *rows, again])
    assert run("LIR", "--beside=[]") == 0
    out = told()
    assert "2 further rows of shop.item are of an id that has a row" in out
    assert ("rows of 1 ids differ: i1" in out) == differ
    (repeated,) = rows_of(shop.parents[1])
    write_item(shop, rows)
    assert run("LIR", "--beside=[]", "--checkpoint_dir=once") == 0
    (shop.parents[1] / "saved").rename(shop.parents[1] / "twice")
    (shop.parents[1] / "once").rename(shop.parents[1] / "saved")
    assert rows_of(shop.parents[1])[0]["test"] == repeated["test"]
