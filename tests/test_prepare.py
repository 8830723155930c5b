"""Each source's raw files become atomic files that models train on; faults in them are found."""

import gzip
import os
import re
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import raw
import yaml
from raw import tables, unsigned

pytest.importorskip("duckdb")

from recbole_llm import cli
from recbole_llm.data.prepare.convert import prepare
from recbole_llm.data.prepare.files.raw import Net, find_file
from recbole_llm.data.prepare.sources import catalogue
from recbole_llm.data.reading.atomic import read_atomic
from recbole_llm.errors import UserError
from recbole_llm.settings import layers

SOURCES = {  # dataset -> (what writes its raw files, users, items, events)
    "Toys": (raw.amazon2018, 24, 13, 24 * 16 + 1 + 6),
    "All_Beauty-23": (raw.amazon2023, 24, 12, 24 * 16),
    "Yelp": (raw.yelp, 12, 12, 12 * 24),
    "Yelp-ST5": (raw.yelp, 60, 12, 60 * 24),
    "Amazon-M2": (raw.m2, 24, 12, 24 * 14),
    "MIND-small": (raw.mind, 24, 12, 24 * 13),
    "ml-100k": (raw.ml_100k, 24, 12, 24 * 16),
    "ml-1m": (raw.ml_1m, 24, 12, 24 * 16),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of datasets, each prepared once, by name; and what was logged."""
    folder, done, said = tmp_path_factory.mktemp("datasets"), set(), []

    def make(name):
        if name not in done:
            hand = folder / "hand" / name
            hand.mkdir(parents=True, exist_ok=True)
            SOURCES[name][0](hand)
            prepare(unsigned(catalogue.find(name)), folder, hand, Net(), log=said.append)
            done.add(name)
        return folder

    make.said = said
    return make


@pytest.mark.parametrize("name", SOURCES)
def test_every_event_is_there_in_its_order(made, name):
    _, users, items, events = SOURCES[name]
    inter, item = tables(made(name), name)
    assert (inter.user_id.nunique(), inter.item_id.nunique(), len(inter)) == (users, items, events)
    if name in ("Toys", "Amazon-M2", "MIND-small"):
        assert (
            "| of them broken, or without user, item or time | 2 |"
            in (made(name) / name / "README.md").read_text()
        )
    assert sorted(path.name for path in (made(name) / name).iterdir()) == sorted(
        ["README.md", *(f"{name}.{kind}" for kind in ("inter", "item", "yaml"))]
    )
    for _, own in inter.groupby("user_id", sort=False):
        assert own.timestamp.is_monotonic_increasing
        numbers = [
            int("".join(filter(str.isdigit, one)))
            for one in own.item_id.drop_duplicates()
            if one != "BUNKNOWN"
        ]
        steps = {(after - before) % 12 for before, after in zip(numbers, numbers[1:])}
        assert steps == {1}, "everybody walks through the shop in its order, equal times included"
    assert item.index.is_unique and item.index.is_monotonic_increasing


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("model", ["LIR", "SASRec"])
def test_models_train_on_it(made, name, model, tmp_path, capsys):
    own = [] if model == "LIR" else ["--epochs=1", "--MAX_ITEM_LIST_LENGTH=10"]
    code = cli.main(
        [
            f"--model={model}",
            f"--dataset={name}",
            f"--data_path={made(name)}",
            f"--checkpoint_dir={tmp_path}",
            "--show_progress=false",
            "--beside=[]",
            *own,
        ]
        + (
            ["--eval_args.mode=uni5", "--candidates_exclude=target"]
            if name in ("Amazon-M2", "MIND-small")
            else []
        )  # of twelve items a user has left few
    )
    out = capsys.readouterr()
    assert code == 0, out.err
    assert f"{name}: " in out.out and "ndcg@10" in out.out


def test_amazon_2018(made):
    inter, item = tables(made("Toys"), "Toys")
    assert inter.duplicated().sum() == 1, "what is there twice stays; runs leave it out"
    assert "ATWICE" not in set(inter.user_id), "what is there twice counts once"
    assert inter.rating.tolist()[:2] == [1 + int(one[1:]) % 5 for one in inter.item_id[:2]]
    assert item.loc["B0"].to_dict() == {
        "title": '“Apple" & juice 🍎',
        "categories": "Puzzles & Games > Puzzles > 3-D Puzzles",
        "brand": "J. Doe",
        "price": "$1,234.00",
        "description": "plain",
        "attributes": "Puzzles_&_Games Puzzles 3-D_Puzzles J._Doe",
    }
    assert item.loc["B5"].to_dict() == {
        "title": 'fig juice, 3" tall',
        "categories": "Puzzles & Games > Puzzles > 3-D Puzzles",
        "brand": "Acme",
        "price": "$5.50",
        "description": "A fresh fig. Really fresh.",
        "attributes": "Puzzles_&_Games Puzzles 3-D_Puzzles Acme",
    }
    assert item.loc["B1", ["price", "categories"]].tolist() == ["", ""] and item.loc[
        "B2", ["price", "brand"]
    ].tolist() == ["", ""]
    assert item.loc["B3"].tolist() == [""] * 6, "a page's script is no title"
    assert item.loc["B4", "title"] == 'elder juice, 3" tall', (
        "of several rows the first with a title"
    )
    assert item.loc["B6", "title"] == 'grape juice, 3" tall', (
        "what is empty when it is cleaned is no title"
    )
    assert not {"BNOBODY", "BUNKNOWN"} & set(item.index) and "BUNKNOWN" in set(inter.item_id), (
        "what has no metadata was bought all the same"
    )


CALREC = (
    "Scientific Instruments Arts Office Games Pet CDs "
    "Automotive Cell Clothing Electronics Food Home Movies"
).split()


def reviews(*rows):
    """Raw reviews: (user, item, day, rating, text), a missing text None."""
    return [
        {
            "reviewerID": user,
            "asin": item,
            "unixReviewTime": 1472688000 + raw.DAY * day,
            "overall": float(stars),
        }
        | ({"reviewText": text} if text is not None else {})
        for user, item, day, stars, text in rows
    ]


@pytest.fixture(scope="module")
def instruments(tmp_path_factory):
    """CALRec's Musical Instruments of three users, prepared, and the tables that a run reads."""
    from recbole_llm.data.recbole.datasets import load_interactions
    from recbole_llm.data.sample import locate

    folder = tmp_path_factory.mktemp("instruments")
    long = [("long", f"B{item}", item, 5, f"t{item}") for item in range(5)]
    events = [
        *long,
        ("long", "B4", 4, 5, "t4"),  # the event before it, once more
        ("long", "B4", 4, 5, "another text"),
        ("long", "B4", 4, 3, "another text"),
        ("long", "B4", 9, 3, "another text"),  # bought again
        *[("short", f"B{item}", item, 5, None) for item in range(4)],
        ("short", "B3", 3, 5, None),  # five events, four without duplicates
        *[("aba", item, 1, 5, "x") for item in ("B0", "B1", "B0", "B1", "B0")],
    ]
    items = [
        {
            "asin": f"B{number}",
            "title": f"horn {number}",
            "category": ["Instruments", "Wind", "Brass"],
            "brand": "Acme",
            "main_cat": department,
        }
        for number, department in enumerate(
            (
                "Musical Instruments",
                "Arts, Crafts &amp; Sewing",
                '<img src="x.png" class="a" alt="AMAZON FASHION"/>',
                "",
                None,
            )
        )
    ]
    (folder / "Musical_Instruments_5.json.gz").write_bytes(
        gzip.compress(raw.lines(reviews(*events)))
    )
    (folder / "meta_Musical_Instruments.json.gz").write_bytes(gzip.compress(raw.lines(items)))
    prepare(catalogue.find("Instruments"), folder / "data", folder, Net(), log=str)
    settings = layers.resolve("CALRec", "Instruments", [], {"data_path": str(folder / "data")})
    return folder, settings, load_interactions(locate.located(settings))


def test_calrecs_category_is_the_department_of_the_store(instruments):
    from recbole_llm.data.texts.text import ItemText

    folder, settings, read = instruments
    _, item = tables(folder / "data", "Instruments")
    assert item["main_category"].tolist() == [
        "Musical Instruments",
        "Arts, Crafts & Sewing",
        "AMAZON FASHION",
        "",
        "",
    ]
    assert set(item["categories"]) == {"Wind > Brass"}, "the path stays"
    text = ItemText.from_interactions(read, settings["text_fields"], settings["text_words"])
    sentence = text.sentence(list(read.items).index("B1"))
    assert (
        sentence == "Title: horn 1. Category: Arts, Crafts & Sewing. Brand: Acme. Price: Unknown."
    )


def test_calrecs_users_have_five_events_after_duplicates_are_left_out(instruments):
    folder, _, read = instruments
    items = {
        user: read.items[read.item[begin:end]].tolist()
        for user, begin, end in zip(read.users, read.start[:-1], read.start[1:])
    }
    assert items == {
        "long": ["B0", "B1", "B2", "B3", "B4", "B4", "B4", "B4"],
        "aba": ["B0", "B1", "B0", "B1", "B0"],  # of one day, and none follows its equal
    }
    assert "2 duplicate events left out (dedup: consecutive)" in read.log
    inter, _ = tables(folder / "data", "Instruments")
    assert len(inter) == 19 and inter["review"].str.fullmatch("[0-9a-f]{8}|").all()
    card = (folder / "data" / "Instruments" / "README.md").read_text()
    assert "left out at load by `dedup`) | 2 (10.5%) |" in card and "`review:token`" in card


def test_duplicates_of_a_paper_are_counted_before_users_are_left_out(instruments, monkeypatch):
    from recbole_llm.data.prepare.check import figures

    folder, _, read = instruments
    own = figures("Instruments", folder / "data")
    assert own["duplicate_share"] == pytest.approx(2 / 19)
    assert (own["users"], own["interactions"]) == (2, len(read.item)) == (2, 13)


@pytest.mark.parametrize("name", catalogue.recipes())
def test_only_calrecs_categories_have_its_settings(name):
    recipe = catalogue.find(name)
    keys = ("dedup", "user_inter_num_interval")
    if name in CALREC:
        assert [recipe.settings[key] for key in keys] == ["consecutive", "[5,inf)"]
        assert recipe.settings["text_fields"]["Category"] == "main_category" and recipe.reviewed
        assert recipe.least == (1, 1)
    else:
        assert not recipe.settings.keys() & set(keys) and not recipe.reviewed
        assert "main_category" not in recipe.columns
    if name in ("Toys", "Yelp"):
        assert recipe.least == (15, 5), "TASTE-LoRA's"


def test_amazon_2023(made):
    inter, item = tables(made("All_Beauty-23"), "All_Beauty-23")
    assert item.loc["P0"].tolist() == [
        "apple cr me",
        "Skin > Face",
        "Acme",
        "$12.5",
        "One. Two three.",
        "Skin Face Acme",
    ]
    assert (
        item.loc["P1"].tolist() == ["banana cr me", "", "", "", "", ""]
        and item.loc["P2", "price"] == ""
    )
    assert not {"PUNKNOWN", "PBLANK", "PSCRIPT"} & set(inter.item_id)
    settings = yaml.safe_load(
        (made("All_Beauty-23") / "All_Beauty-23" / "All_Beauty-23.yaml").read_text()
    )
    assert settings["eval_args"]["split"]["timestamp"] == [1628643414042, 1658002729837]


def test_yelp(made):
    inter, item = tables(made("Yelp"), "Yelp")
    assert inter.timestamp.min() in (1462060800.0, 1530396551.0) and set(inter.rating) == {3.0, 5.0}
    assert item.loc["b0"].to_dict() == {
        "title": "Apple Café",
        "categories": "Cafes, Food",
        "address": "0 Main St, Suite 2",
        "city": "Phoenix",
        "state": "AZ",
        "description": "Cafes, Food. 0 Main St, Suite 2, Phoenix, AZ",
        "attributes": "Cafes Food Phoenix",
    }
    assert (
        item.loc["b1", ["categories", "description"]].tolist() == ["Cafes, Food", "Cafes, Food. AZ"]
        and item.loc["b2", "categories"] == ""
    )
    assert tables(made("Yelp-ST5"), "Yelp-ST5")[1].loc["b0", "title"] == "Apple Caf"


def test_amazon_m2(made):
    inter, item = tables(made("Amazon-M2"), "Amazon-M2")
    first = inter[inter.user_id == "1"]
    assert first.item_id.tolist() == [
        f"B{place % 12}" for place in range(13)
    ] and first.timestamp.tolist() == list(range(1, 14))
    assert (
        item.loc["B0", "title"] == "apple mug, blue"
        and item.loc["B0", "price"] == "£1.99"
        and item.loc["B1", "price"] == ""
    )
    assert item.loc["B4", "attributes"] == "Acme Blue Ceramic" and item.loc["B2", "brand"] == "NA"
    assert item.loc["B3", "description"] == 'A "made up" damson, over two lines.'


def test_mind(made):
    inter, item = tables(made("MIND-small"), "MIND-small")
    assert inter[inter.user_id == "U3"].item_id.tolist() == [
        f"N{(3 + place) % 12}" for place in range(12)
    ], "the first history that is not empty"
    assert item.loc["N1"].to_dict() == {
        "title": 'What "banana means for you',
        "category": "sports",
        "subcategory": "banana_ball",
        "abstract": "",
        "attributes": "sports banana_ball",
    }
    settings = yaml.safe_load((made("MIND-small") / "MIND-small" / "MIND-small.yaml").read_text())
    assert (
        list(settings["text_fields"]) == ["Category", "Subcategory", "Title"]
        and settings["eval_args"]["mode"] == "uni20"
    )


def test_movielens_has_the_columns_that_recbole_ships(made):
    for name, genres in (("ml-100k", "Action Children's"), ("ml-1m", "Animation Children's")):
        inter, item = tables(made(name), name)
        assert list(inter) == ["user_id", "item_id", "rating", "timestamp"] and list(item) == [
            "movie_title",
            "release_year",
            "class",
        ]
        assert item.loc["2"].tolist() == [
            "Bananaé, The" if name == "ml-100k" else "Banana: The Film é",
            "1971",
            genres,
        ]
    assert tables(made("ml-100k"), "ml-100k")[1].loc["3"].tolist() == ["unknown", "", "unknown"]


def test_a_card_that_can_be_cited(made):
    card = (made("Toys") / "Toys" / "README.md").read_text()
    for part in (
        "@inproceedings{ni-etal-2019",
        "No licence is published",
        "prepare Toys`",
        "at least 15 and items with at least 5",
        "| users | 24 |",
        "1472688000 (2016-09-01) to 1473292800 (2016-09-08)",
        "| metadata rows that are broken or without an item | 1 |",
        "| events that repeat another (left out at load by `dedup`) | 1 (0.3%) |",
        "| items without title | 1 |",
        "Toys_and_Games_5.json.gz` |",
    ):
        assert part in card, part
    assert any("2 of 421 events are broken" in line for line in made.said)


def test_users_are_drawn_the_same_way_every_time(tmp_path):
    raw.amazon2018(tmp_path, "Pet_Supplies")
    recipe = catalogue.find("Pet")
    users = [
        set(
            tables(prepare(recipe, tmp_path / name, tmp_path, Net(), log=str).parent, "Pet")[
                0
            ].user_id
        )
        for name in ("one", "two")
    ]
    assert users[0] == users[1] and len(users[0]) == 5  # 20 % of 25


def test_real_data_is_read_once_it_is_there_and_that_is_said(tmp_path, capsys):
    ask = [
        "--model=LIR",
        "--dataset=Pet",
        f"--data_path={tmp_path / 'data'}",
        f"--checkpoint_dir={tmp_path / 'saved'}",
        "--show_progress=false",
        "--beside=[]",
        "--user_sample=0.2",
    ]
    assert cli.main(ask) == 0
    said = capsys.readouterr()
    assert "SYNTHETIC DATA: Pet is not prepared" in said.out + said.err
    raw.amazon2018(tmp_path, "Pet_Supplies")
    prepare_pet = ["prepare", "Pet", f"--data_path={tmp_path / 'data'}", f"--raw={tmp_path}"]
    assert cli.main(prepare_pet) == 0
    assert cli.main(ask) == 0
    said = capsys.readouterr()
    assert f"events read from {tmp_path / 'data' / 'Pet'}" in said.out + said.err
    assert "SYNTHETIC" not in said.out + said.err


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path):
    raw.amazon2018(tmp_path)
    recipe = catalogue.find("Toys")
    for name in ("Toys_and_Games_5.json.gz", "meta_Toys_and_Games.json.gz"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(
            UserError, match=f"{name}: cannot be read to its end .*cut short: remove it"
        ):
            prepare(recipe, tmp_path / "data", tmp_path, Net(), log=str)
        (tmp_path / name).write_bytes(whole)
        assert [path.name for path in (tmp_path / "data").iterdir()] == [".Toys.lock"]
    for content, message in (
        (
            '{"asin": "B1", "reviewerID": "A1", "unixReviewTime": 1}\n[]\n\n"x"\n',
            "Toys: no event is left of .*at least 15",
        ),
        (
            '{"asin": "B1"}\n[]\n\n"x"\n',
            "expected events with user, item and time, found [34] lines without user or time",
        ),
        (
            '[{"asin": "B1"},\n{"asin": "B1"}]\n',
            "expected JSON lines, one object a line, found a list",
        ),
    ):
        (tmp_path / "Toys_and_Games_5.json.gz").write_bytes(gzip.compress(content.encode()))
        with pytest.raises(UserError, match=message):
            prepare(recipe, tmp_path / "data", tmp_path, Net(), log=str)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".Toys.lock"]


KILLED = """
import os, signal, sys
from recbole_llm import cli
from recbole_llm.data.prepare import convert, items
module, name, end = sys.argv[1:4]
holder = os if module == "os" else {"convert": convert, "items": items}[module]
inner = getattr(holder, name)

def killed(*args):
    if not end or str(args[1]).endswith(end):
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*args)

setattr(holder, name, killed)
cli.main(["prepare", "Toys", *sys.argv[4:]])
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize(
    "moment",
    [
        ("convert", "read_items", ""),
        ("items", "clean", ""),
        ("os", "replace", "README.md"),
        ("os", "replace", ".inter"),
    ],
)
def test_a_killed_conversion_is_begun_anew_and_a_finished_one_is_kept(tmp_path, moment):
    raw.amazon2018(tmp_path)
    ask = [f"--raw={tmp_path}", f"--data_path={tmp_path / 'data'}"]
    child = subprocess.run(
        [sys.executable, "-c", KILLED, *moment, *ask], capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not (tmp_path / "data" / "Toys" / "Toys.inter").exists(), "half of it is no dataset"
    with pytest.raises(UserError, match="the dataset names none"):
        layers.resolve("S3Rec", "Toys", [], {"data_path": str(tmp_path / "data")})
    recipe = catalogue.find("Toys")
    prepare(recipe, tmp_path / "data", tmp_path, Net(), log=str)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".Toys.lock", "Toys"]
    with pytest.raises(UserError, match="Toys exists already; remove it"):
        prepare(recipe, tmp_path / "data", tmp_path, Net(), log=str)


@pytest.mark.skipif(os.name == "nt", reason="limits of files")
def test_a_full_disk_is_one_line(tmp_path):
    """A limit on the size of files stands for a full disk; events and texts pass it apart."""
    raw.amazon2018(tmp_path)
    ask = ["prepare", "Toys", f"--raw={tmp_path}", f"--data_path={tmp_path / 'data'}"]
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "from recbole_llm import cli; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
        "sys.exit(cli.main(sys.argv[2:]))"
    )
    for most in (2000, 6000, 90_000):
        child = subprocess.run(
            [sys.executable, "-c", limited, str(most), *ask], capture_output=True, text=True
        )
        error = child.stderr.replace("\n\n", "\n").strip()
        assert child.returncode == (0 if most == 90_000 else 2), error
        assert (
            most == 90_000 or error.count("\n") == 0 and re.search("make room|free space", error)
        ), error
        assert (tmp_path / "data" / "Toys").exists() == (most == 90_000)
    raw.yelp(tmp_path)
    child = subprocess.run(
        [sys.executable, "-c", limited, "9000", "prepare", "Yelp", *ask[2:]],
        capture_output=True,
        text=True,
    )
    assert (
        child.returncode == 2 and "make room" in child.stderr and "archive" not in child.stderr
    ), child.stderr


def test_folders_that_cannot_be_used(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "raw").write_text("no folder")
    assert cli.main(["prepare", "Toys", f"--data_path={tmp_path / 'data'}"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'data' / 'raw'}" in error and error.count("\n") == 1


def test_files_of_one_name(tmp_path):
    """Which of them is meant is never guessed."""
    recipe = unsigned(catalogue.find("ml-1m"))
    for number, name in enumerate(("ml-10M100K", "elsewhere", "ml-1m")):
        (folder := tmp_path / "hand" / name).mkdir(parents=True)
        raw.ml_1m(folder)
        with zipfile.ZipFile(folder / "ml-1m.zip") as holder:
            for member in ("ratings.dat", "movies.dat"):
                (folder / member).write_bytes(
                    holder.read(f"ml-1m/{member}") + bytes(b"\n" * number)
                )
        (folder / "ml-1m.zip").unlink()
        if number == 1:  # of other datasets, however few there are
            assert find_file(replace(recipe.files[0], hosts=()), tmp_path / "hand") is None
            with pytest.raises(UserError, match="ml-1m.zip can only be downloaded by hand"):
                prepare(
                    replace(recipe, files=(replace(recipe.files[0], hosts=()),)),
                    tmp_path / "one",
                    tmp_path / "hand",
                    Net(),
                    log=str,
                )
    prepare(
        recipe, tmp_path / "two", tmp_path / "hand", Net(), log=str
    )  # the folder that the archive has tells
    prepare(
        recipe, tmp_path / "bare", tmp_path / "hand" / "elsewhere", Net(), log=str
    )  # as does the user
    for name in ("one", "two"):
        (folder := tmp_path / "reviews" / name).mkdir(parents=True)
        raw.amazon2018(folder)
    whole = (folder / "Toys_and_Games_5.json.gz").read_bytes()
    find_file(catalogue.find("Toys").files[0], tmp_path / "reviews")  # copies are one file
    (folder / "Toys_and_Games_5.json.gz").write_bytes(whole + bytes(1))
    with pytest.raises(
        UserError,
        match=(
            "expected one Toys_and_Games_5.json.gz, "
            "found one/Toys.* and two/Toys.*, which differ; name the folder"
        ),
    ):
        find_file(catalogue.find("Toys").files[0], tmp_path / "reviews")
    for name, size in (("MINDsmall_dev", 30), ("MINDsmall_train", 0)):
        (folder := tmp_path / "mind" / name).mkdir(parents=True)
        raw.mind(folder)
        with zipfile.ZipFile(folder / "MINDsmall_train.zip") as holder:
            for member in ("behaviors.tsv", "news.tsv"):
                (folder / member).write_bytes(holder.read(f"MINDsmall_train/{member}")[size:])
        (folder / "MINDsmall_train.zip").unlink()
    inter, _ = tables(
        prepare(
            unsigned(catalogue.find("MIND-small")),
            tmp_path / "three",
            tmp_path / "mind",
            Net(),
            log=str,
        ).parent,
        "MIND-small",
    )
    assert inter.user_id.nunique() == 24


def test_cores_are_told_by_what_is_in_them(tmp_path):
    raw.amazon2023(tmp_path)
    with pytest.raises(
        UserError,
        match=(
            "expected the 5-core file, found 8% of the users and "
            "items with fewer than 5 events; .* prepare 0-core"
        ),
    ):
        prepare(catalogue.find("All_Beauty-23-5core"), tmp_path / "data", tmp_path, Net(), log=str)
    ratings = tmp_path / "All_Beauty.csv.gz"
    rows = [
        line
        for line in gzip.decompress(ratings.read_bytes()).decode().splitlines()
        if line.split(",")[1] not in ("PUNKNOWN", "PBLANK", "PSCRIPT")
    ]
    ratings.write_bytes(gzip.compress("\n".join(rows).encode()))
    with pytest.raises(UserError, match="expected the 0-core file, found 0% .* prepare 5-core"):
        prepare(catalogue.find("All_Beauty-23"), tmp_path / "data", tmp_path, Net(), log=str)
    prepare(catalogue.find("All_Beauty-23-5core"), tmp_path / "data", tmp_path, Net(), log=str)


@pytest.mark.parametrize("model", ["SASRecF", "S3Rec", "SASRec", "LIR"])
def test_features_are_those_of_feature_models(made, model):
    """Whole names as tokens; another model's run is not renamed by them."""
    settings = layers.resolve(model, "Toys", [], {"data_path": str(made("Toys"))})
    asked = {"SASRecF": (["attributes"], None), "S3Rec": (None, "attributes")}.get(
        model, (None, None)
    )
    assert (settings["selected_features"], settings["item_attribute"]) == asked


@pytest.mark.slow
def test_feature_models_learn_from_whole_names(made, tmp_path, capsys):
    ask = [
        "--model=FDSA",
        "--dataset=Toys",
        f"--data_path={made('Toys')}",
        f"--checkpoint_dir={tmp_path}",
        "--show_progress=false",
        "--beside=[]",
    ]
    assert cli.main([*ask, "--epochs=1", "--train_batch_size=64"]) == 0, capsys.readouterr().err
    tokens = read_atomic(made("Toys") / "Toys" / "Toys.item").attributes.str.split()
    assert {"Puzzles_&_Games", "3-D_Puzzles", "J._Doe"} <= set(tokens.explode())


@pytest.mark.parametrize(
    ("rows", "suffix", "opened"),
    [
        pytest.param(700_000, "", open, marks=pytest.mark.slow),
        pytest.param(1_200_000, "", open, marks=pytest.mark.slow),
        pytest.param(1_200_000, ".gz", partial(gzip.open, compresslevel=1), marks=pytest.mark.slow),
    ],
    ids=["two buffers", "many buffers", "compressed"],
)
def test_order_outlives_large_joins(tmp_path, rows, suffix, opened):
    """More rows than DuckDB reads at once, 32 MiB, by several threads; half of them of one time."""
    with opened(tmp_path / f"Toys_and_Games_5.json{suffix}", "wt") as file:
        file.writelines(
            (
                f'{{"reviewerID": "A{row % 999}", "asin": "B{row}", '
                f'"overall": 5.0, "unixReviewTime": {row % 2}}}\n'
            )
            for row in range(rows)
        )
    with opened(tmp_path / f"meta_Toys_and_Games.json{suffix}", "wt") as file:
        file.writelines(
            f'{{"asin": "B{row % 3000}", "title": "row {row}"}}\n' for row in range(9000)
        )
    prepare(
        replace(catalogue.find("Toys"), least=(15, 1)),
        tmp_path / "data",
        tmp_path,
        Net(),
        memory=512,
        log=str,
    )
    inter, item = tables(tmp_path / "data", "Toys")
    number = inter.item_id.str[1:].astype(int).to_numpy()
    assert (
        len(inter) == rows
        and (np.lexsort((number, number % 2, (number % 999).astype(str))) == np.arange(rows)).all()
    )
    assert (item.title == "row " + item.index.str[1:]).all() and len(item) == 3000


def test_two_processes_prepare_one_after_the_other(tmp_path):
    """The second one finds what the first has made."""
    import threading

    raw.amazon2018(tmp_path)
    results = []

    def one():
        try:
            results.append(
                prepare(catalogue.find("Toys"), tmp_path / "data", tmp_path, Net(), log=str)
            )
        except UserError as error:
            results.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(isinstance(result, Path) for result in results) == [False, True]
    assert "exists already" in next(result for result in results if isinstance(result, str))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Pett"], "expected one of the 9[0-9] datasets that --list names, such as Pet"),
        (["Software"], "such as Software-18 or Software-23"),
        (["Video_Games"], "such as Games or Video_Games-23"),
        (["Pet_Supplies"], "such as Pet or Pet_Supplies-18 or Pet_Supplies-23"),
        ([], "NAME of a dataset=… is missing"),
        (["Toys", "--raw=nowhere"], "--raw: expected a folder, found nowhere"),
        (["Toys", "--memory=1"], "--memory: expected 512 to "),
        (["Toys", "--memory=99999999999999999999"], "--memory: expected 512 to "),
        (["Toys", "--items=x.csv"], "--items and --map are of your own tables"),
        (["--check", "ml-100k"], "--check: expected a dataset with figures in a paper"),
        (["--check", "Pet"], "dataset/Pet is not there; prepare Pet first"),
        (
            ["--name=a/b", "--inter=x.csv", "--map=user=a"],
            "--name 'a/b': expected the name of a folder",
        ),
        (
            ["--name=a", "--inter=x.xls", "--map=user=a,item=b,time=c"],
            "--inter: expected a file, found x.xls",
        ),
        (
            ["--name=a", "--inter=setup.cfg", "--map=user=a,item=b,time=c"],
            "setup.cfg: expected one of .csv",
        ),
        (["--name=a", "--inter=x.csv", "--map=user=a,item=b"], "--map: .* found no time"),
        (
            ["--name=a", "--inter=x.csv", "--map=user=a,item"],
            "--map: expected role=column, each role once .*, found 'item'",
        ),
        (
            ["--name=a", "--inter=x.csv", "--map=user=a,item=b,time=c,title=d,Title=e"],
            "each role once .*, found 'Title=e'",
        ),
        (
            ["--name=a", "--inter=x.csv", "--map=user=a,item=b,time=c,title=d"],
            "--items: expected the file with title, found none",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    assert cli.main(["prepare", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error


def test_statistics_beside_the_papers(made, capsys):
    assert cli.main(["prepare", "--check", "Toys", f"--data_path={made('Toys')}"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Toys, as runs see it, beside TASTE-LoRA, table 1"
    rows = [
        ["users", "24", "7,892", "-99.7%"],
        ["items", "met", "13", "14,512", "-99.9%"],
        ["events", "390", "204,177", "-99.8%"],
    ]
    assert [line.split() for line in out[2:]] == rows


def test_all_are_named(capsys):
    assert cli.main(["prepare", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(
        f"  {name} " in out
        for name in (
            "Scientific",
            "Pet",
            "Toys",
            "All_Beauty-23",
            "Yelp",
            "Amazon-M2",
            "MIND-large",
            "ml-1m",
        )
    )
