"""RecBole's models get RecBole's rows, by one numbering of items, and never see their targets."""

import itertools

import numpy as np
import pytest
import torch

from recbole_llm.contracts.cases import Cases
from recbole_llm.errors import UserError

INTER = ("user_id:token", "item_id:token", "timestamp:float", "rating:float")
COLUMNS = ("user_id", "item_id", "timestamp", "rating")
ITEM = ("item_id:token", "title:token_seq", "brand:token", "price:float")
FEATURES = {"selected_features": ["title", "brand", "price"]}
# what models of each family need to be built
MODELS = {
    "SASRec": {},
    "GRU4Rec": {},
    "CALRec": {},
    "BPR": {},
    "Pop": {},
    "FDSA": FEATURES,
    "DIEN": {},
    "FM": {"load_col": {"inter": list(COLUMNS), "item": ["item_id", "brand"]}},
}


def random_rows(lengths=(1, 2, 3, 4, 6, 9, 12, 5), items=10, seed=0):
    """Return events in random order.

    Times are positions in the user's sequence, as the harness passes them to RecBole.
    """
    rng = np.random.default_rng(seed)
    users = np.repeat(range(len(lengths)), lengths).tolist()
    times = itertools.chain.from_iterable(map(range, lengths))
    rows = [
        (f"u{user}", f"i{rng.integers(items)}", time, rng.integers(1, 6))
        for user, time in zip(users, times, strict=True)
    ]
    return [rows[place] for place in rng.permutation(len(rows))]


def side_rows(items=10):
    """Return items in no order, of which every third has no brand and every fourth no price."""
    rows = [
        (
            f"i{item}",
            " ".join(["word"] * (item % 3) + [f"w{item}"]),
            f"b{item % 2}" if item % 3 else "",
            item if item % 4 else "",
        )
        for item in range(items)
    ]
    return rows[::-1]


@pytest.fixture
def folder(write):
    return write({"inter": [INTER, *random_rows()], "item": [ITEM, *side_rows(14)]})


def check_equal(found, expected):
    """Check that two Interactions have equal columns, types and values."""
    assert set(found.columns) == set(expected.columns)
    for name in expected.columns:
        assert found[name].dtype == expected[name].dtype, name
        assert torch.equal(found[name], expected[name]), name


# Rows


@pytest.mark.parametrize("longest", [50, 4, 1])
def test_rows_are_recboles(folder, stock, parts, longest):
    """Training rows equal RecBole's in columns, types, values and order.

    A shuffle therefore gives the same batches.
    """
    dataset = stock("SASRec", folder, columns=COLUMNS, MAX_ITEM_LIST_LENGTH=longest)
    expected = dataset.build()
    found = parts(
        "SASRec",
        folder,
        dedup="none",
        load_col={"inter": list(COLUMNS)},
        MAX_ITEM_LIST_LENGTH=longest,
    )
    for mine, theirs in zip(found, expected, strict=True):
        rows = mine.inter_feat
        assert len(rows) == len(theirs.inter_feat) > 0
        check_equal(rows[np.arange(len(rows))], theirs.inter_feat)
        for name in theirs.inter_feat.columns:
            assert name in rows
            assert torch.equal(rows[name], theirs.inter_feat[name])
    for field in ("user_id", "item_id"):
        assert found[0].field2id_token[field].tolist() == dataset.field2id_token[field].tolist()


def test_the_matrix_of_training_events(write, stock, parts):
    """The matrix of events equals RecBole's own where RecBole counts correctly.

    RecBole omits users of one event, and counts every event twice where lists hold one item.
    """
    folder = write({"inter": [INTER, *random_rows(lengths=(2, 3, 4, 6, 9, 12, 5))]})
    mine = parts("SASRec", folder, dedup="none")[0].inter_matrix().toarray()
    np.testing.assert_array_equal(mine, stock("SASRec", folder).build()[0].inter_matrix().toarray())
    assert mine.max() > 1


def test_rows_are_recboles_on_real_data(shared, write, stock, parts):
    """One of the first users of Scientific has more than the 50 items that a model reads."""
    lines = (
        (shared / "data" / "Scientific" / "Scientific.inter")
        .read_text(encoding="utf-8")
        .split("\n")
    )
    events = [line.split("\t") for line in lines[1:] if line]
    count = {}
    for user, *_ in events:
        count[user] = count.get(user, 0) + 1
    kept = {*list(count)[:150], max(count, key=count.get)}
    places = [
        (user, item, int(place) - 1) for user, item, place in events if user in kept
    ]  # ours begin with 0
    folder = write({"inter": [lines[0].split("\t"), *places]})
    dataset = stock("SASRec", folder)
    for mine, theirs in zip(parts("SASRec", folder), dataset.build(), strict=True):
        check_equal(mine.inter_feat[np.arange(len(mine.inter_feat))], theirs.inter_feat)
    assert max(count[user] for user in kept) > 50


@pytest.mark.parametrize(
    "index",
    [
        3,
        [4, 0, 4],
        np.array([2, 1]),
        torch.tensor([5, 5]),
        slice(2, 9, 3),
        slice(None),
        "odd",
        "tensor",
    ],
    ids=str,
)
def test_rows_are_read_in_any_way(folder, parts, index):
    lazy = parts("SASRec", folder, dedup="none", MAX_ITEM_LIST_LENGTH=4)[0].inter_feat
    rows = lazy[np.arange(len(lazy))]
    odd = np.arange(len(lazy)) % 2 == 1
    index = (
        {"odd": odd, "tensor": torch.from_numpy(odd)}.get(index, index)
        if isinstance(index, str)
        else index
    )
    check_equal(lazy[index], rows[index])


def test_a_training_loader_gives_whole_rows(folder):
    from worlds import loaders_of

    from recbole_llm.settings import layers

    settings = layers.resolve(
        "SASRec",
        "toy",
        [],
        {"use_gpu": False, "dedup": "none", "train_batch_size": 8, "MAX_ITEM_LIST_LENGTH": 4},
    )
    train = loaders_of(layers.recbole_config(settings, folder))[0]
    rows = train._dataset.inter_feat
    expected = rows[np.arange(len(rows))]
    batches = list(train)
    assert len(batches) == -(-len(rows) // 8)

    def tuples(part):
        columns = [part["item_id_list"], part["item_id"][:, None], part["user_id"][:, None]]
        return list(map(tuple, torch.cat(columns, 1).tolist()))

    seen, every = list(itertools.chain.from_iterable(map(tuples, batches))), tuples(expected)
    assert sorted(seen) == sorted(every) and seen != every


def test_times_arrive_as_exact_ranks(write, parts):
    """Trap 3: in RecBole's float32, these four times are equal."""
    times = {"a": 1_600_000_000, "b": 1_600_000_010, "c": 1_600_000_020, "d": 1_600_000_030}
    folder = write(
        {
            "inter": [
                INTER,
                *(("u", item, times[item], 1) for item in "cadb"),
                *(("v", item, times[item], 1) for item in "dbca"),
            ]
        }
    )
    test = parts("SASRec", folder)[2]
    batch = test.case_batch(test.cases)
    assert test.id2token("item_id", batch["item_id_list"][:, :3]).tolist() == [["a", "b", "c"]] * 2
    assert batch["timestamp_list"][:, :3].tolist() == [[0, 1, 2]] * 2
    assert len({np.float32(time) for time in times.values()}) == 1


SPLIT = ("user_id:token", "item_id_list:token_seq", "item_id:token")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_reads_split_files(write, parts, model):
    rows = {
        "train": [("u", "a b", "c"), ("v", "b", "a")],
        "valid": [("u", "a b c", "b")],
        "test": [("u", "a b c b", "a"), ("v", "b a", "d")],
    }
    files = {f"{part}.inter": [SPLIT, *own] for part, own in rows.items()}
    settings = MODELS[model] | {"load_col": {"inter": ["user_id", "item_id"], "item": ["item_id"]}}
    item = [ITEM, *((item, f"w{item}", "b", "1") for item in "abcde")]
    test = parts(
        model,
        write(files | {"item": item}),
        benchmark_filename=["train", "valid", "test"],
        **settings,
    )[2]
    interactions = test.interactions
    token = interactions.items[interactions.item]
    found = [
        (interactions.users[user], " ".join(token[a:b]), token[b])
        for user, a, b in zip(test.cases.user, test.cases.begin, test.cases.end, strict=True)
    ]
    assert found == rows["test"]
    batch = test.case_batch(test.cases)
    if "item_id_list" in batch:
        assert test.id2token("item_id", batch["item_id_list"][:, :5]).tolist() == [
            ["a", "b", "c", "b", "[PAD]"],
            ["b", "a"] + 3 * ["[PAD]"],
        ]


def test_long_lists_of_split_files_keep_their_newest_items(write, parts):
    """Long lists keep their newest items.

    With seq_len, RecBole keeps the oldest; without it, its model raises IndexError.
    """
    rows = {
        "train": [("u", "a b", "c")],
        "valid": [("u", "a b c", "d")],
        "test": [("u", "a b c d e f", "g"), ("v", "g", "a")],
    }
    folder = write({f"{part}.inter": [SPLIT, *own] for part, own in rows.items()})
    test = parts(
        "SASRec", folder, benchmark_filename=["train", "valid", "test"], MAX_ITEM_LIST_LENGTH=3
    )[2]
    batch = test.case_batch(test.cases)
    assert test.id2token("item_id", batch["item_id_list"]).tolist() == [
        ["d", "e", "f"],
        ["g", "[PAD]", "[PAD]"],
    ]
    assert batch["item_length"].tolist() == [3, 1]
    assert test.id2token("item_id", test.inter_feat["item_id"]).tolist() == ["g", "a"]


# What a model may know of a case


@pytest.mark.parametrize("model", MODELS)
def test_no_case_holds_its_target(folder, parts, model):
    """Trap 10: RecBole's evaluation batches hold the target item and all of its event's columns."""
    settings = MODELS[model] | {
        "load_col": {"inter": list(COLUMNS)} | MODELS[model].get("load_col", {})
    }
    for part in parts(model, folder, **settings)[1:]:
        batch = part.case_batch(part.cases)
        allowed = {
            "user_id",
            "item_length",
            "case_begin",
            "case_end",
            "item_id_list",
            "timestamp_list",
            "rating_list",
            "neg_item_id_list",
        }
        assert set(batch.columns) <= allowed
        assert len(batch) == len(part.cases)
        np.testing.assert_array_equal(batch["user_id"], part.cases.user + 1)


@pytest.mark.parametrize("model", ["SASRec", "FDSA", "CALRec", "BPR"])
def test_a_case_does_not_change_with_its_target(write, parts, model):
    """Two files differ in item, rating and time of the users' last events."""
    rows = random_rows()
    last = {}
    for user, _, time, _ in rows:
        last[user] = max(last.get(user, 0), time)
    known = [("first", f"i{item}", item, 1) for item in range(10)] + [("second", "extra", 0, 1)]

    def another(user, item, time, rating):
        return (
            (user, f"i{(int(item[1:]) + 3) % 10}", time + 50, 6 - rating)
            if time == last[user] > 1
            else (user, item, time, rating)
        )

    batches = []
    for events in (rows, [another(*row) for row in rows]):
        folder = write({"inter": [INTER, *known, *events], "item": [ITEM, *side_rows()]})
        test = parts(
            model, folder, dedup="none", **MODELS[model] | {"load_col": {"inter": list(COLUMNS)}}
        )[2]
        batches.append((test.case_batch(test.cases), test.inter_feat["item_id"]))
    check_equal(batches[0][0], batches[1][0])
    assert (batches[0][1] != batches[1][1]).sum() == len(
        batches[0][1]
    ) - 1  # all but the first user's target


def test_user_features_are_known(write, parts):
    files = {
        "inter": [INTER, *random_rows()],
        "user": [
            ("user_id:token", "age:token"),
            *((f"u{user}", f"a{user}") for user in range(7, 0, -1)),
        ],
    }
    columns = {"inter": ["user_id", "item_id"], "user": ["user_id", "age"]}
    for model in ("SASRec", "BPR", "FM"):
        test = parts(model, write(files), load_col=columns)[2]
        batch = test.case_batch(test.cases)
        assert test.id2token("age", batch["age"]).tolist() == [
            f"a{user[1:]}" for user in test.id2token("user_id", batch["user_id"])
        ]


@pytest.mark.parametrize("model", ["SASRec", "DIEN", "CALRec"])
def test_a_case_after_everything(folder, parts, model):
    dataset = parts(model, folder)[2]
    case = dataset.case_after(3)
    interactions = dataset.interactions
    assert (case.begin[0], case.end[0]) == (interactions.start[3], interactions.start[4])
    batch = dataset.case_batch(case)
    if model == "CALRec":
        found = dataset.cases_of(batch)
        for name in ("user", "begin", "end"):
            field = getattr(found, name)
            assert field.tolist() == getattr(case, name).tolist() and len(field) == 1
    else:
        history = interactions.item[interactions.start[3] : interactions.start[4]] + 1
        assert batch["item_id_list"][0, : len(history)].tolist() == history.tolist()
        assert batch["item_length"].tolist() == [len(history)]


@pytest.mark.parametrize("model", ["SASRec", "DIEN", "CALRec"])
def test_somebody_new(folder, parts, model):
    dataset = parts(model, folder)[2]
    before = dataset.case_batch(dataset.cases)
    items = np.array([4, 0, 4])
    wider, case = dataset.extended(items)
    batch = wider.case_batch(case)
    assert batch["user_id"].tolist() == [0]  # RecBole's padding user
    if model == "CALRec":
        assert (
            wider.interactions.items[wider.interactions.item[case.begin[0] : case.end[0]]].tolist()
            == dataset.interactions.items[items].tolist()
        )
    else:
        assert batch["item_id_list"][0, :4].tolist() == [5, 1, 5, 0]
        assert batch["timestamp_list"][0, :3].tolist() == [0, 1, 2]
    check_equal(wider.case_batch(dataset.cases), before)
    check_equal(dataset.case_batch(dataset.cases), before)


# Our models' rows


def test_cases_of_our_models_are_two_row_numbers(folder, parts):
    for part in parts("CALRec", folder):
        rows = part.inter_feat
        assert len(rows) == len(part.cases)
        for cases in (part.cases_of(rows), part.cases_of(part.case_batch(part.cases))):
            assert isinstance(cases, Cases)
            for name in ("user", "begin", "end"):
                np.testing.assert_array_equal(getattr(cases, name), getattr(part.cases, name))
        np.testing.assert_array_equal(rows["item_id"], part.interactions.item[part.cases.end] + 1)


# DIEN


def test_negative_lists_follow_their_events(folder, parts):
    """Each event has one negative, which is never its own item.

    RecBole draws negatives in file order and reads them in temporal order.
    """
    np.random.seed(0)
    train, _, test = parts("DIEN", folder, dedup="none", MAX_ITEM_LIST_LENGTH=5)
    negative, item = train.neg_item_list.numpy(), train.events["item_id"].numpy()
    assert len(negative) == len(item) and (negative != item).all()
    assert negative.min() > 0 and negative.max() < train.item_num and len(set(negative)) > 5
    for part, batch in ((train, train.inter_feat), (test, test.case_batch(test.cases))):
        for row, (begin, end) in enumerate(zip(part.cases.begin, part.cases.end, strict=True)):
            newest = slice(max(begin, end - 5), end)
            padding = [0] * (5 - (newest.stop - newest.start))
            assert batch["neg_item_id_list"][row].tolist() == [*negative[newest], *padding]
            assert batch["item_id_list"][row].tolist() == [*item[newest], *padding]


# Items


@pytest.mark.parametrize("catalogue", ["met", "all"])
def test_the_catalogue_does_not_depend_on_what_is_loaded(write, parts, catalogue):
    """Items without events are not ranked, and items that .item lacks keep their events.

    Trap 4: in RecBole, FDSA ranks the former and loses the events of the latter.
    """
    folder = write(
        {
            "inter": [INTER, *random_rows(), ("u9", "stray", 1, 1), ("u9", "i1", 2, 1)],
            "item": [ITEM, *side_rows(14)],
        }
    )
    size = {"met": 11, "all": 15}[catalogue]
    reference = None
    for model, settings in MODELS.items():
        train, _, test = parts(model, folder, catalogue=catalogue, **settings)
        found = (
            test.field2id_token["item_id"].tolist(),
            test.interactions.fingerprint,
            len(test.events),
            len(test.cases),
        )
        reference = reference or found
        assert found == reference
        assert train.item_num == test.item_num == size + 1
    assert "stray" in reference[0]


def test_recboles_catalogue_depends_on_what_is_loaded(folder, stock):
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    sizes = [
        stock("SASRec", folder, load_col=own).item_num
        for own in (columns, columns | {"item": ["item_id", "title"]})
    ]
    assert sizes[0] == 11 and sizes[1] == 15


@pytest.mark.parametrize("model", MODELS)
def test_ids_are_indices_of_the_tables_plus_one(folder, parts, model):
    """Ids do not depend on the order of .item."""
    for part in parts(model, folder, catalogue="all", **MODELS[model]):
        interactions = part.interactions
        assert part.field2id_token["user_id"][1:].tolist() == interactions.users.tolist()
        assert part.field2id_token["item_id"][1:].tolist() == interactions.items.tolist()
        np.testing.assert_array_equal(part.events["item_id"], interactions.item + 1)
        np.testing.assert_array_equal(part.events["user_id"], interactions.user + 1)
        np.testing.assert_array_equal(part.events["timestamp"], interactions.position)


@pytest.mark.parametrize("model", ["FDSA", "FM"])
def test_item_features_arrive_at_their_items(folder, parts, model):
    """A missing token becomes the padding id, and a missing number the mean of the known ones.

    With pandas 3, the token became INT64_MIN.
    """
    settings = (
        FEATURES
        if model == "FDSA"
        else {
            "load_col": {
                "inter": ["user_id", "item_id"],
                "item": ["item_id", "title", "brand", "price"],
            }
        }
    )
    dataset = parts(model, folder, **settings)[0]
    known = {row[0]: row[1:] for row in side_rows()}
    feature = dataset.item_feat
    assert len(feature) == dataset.item_num == 11
    mean = np.mean([price for _, _, price in known.values() if price != ""])
    assert feature["brand"][0] == 0 and (feature["title"][0] == 0).all()
    # FDSA reads the number, which RecBole then hands over beside its bucket
    prices = feature["price"][:, 0] if model == "FDSA" else feature["price"]
    for number, item in enumerate(dataset.interactions.items, start=1):
        title, brand, price = known[item]
        words = dataset.id2token("title", feature["title"][number])
        assert [word for word in words if word != "[PAD]"] == title.split()
        assert dataset.field2id_token["brand"][feature["brand"][number]] == (brand or "[PAD]")
        assert prices[number] == pytest.approx(mean if price == "" else price)
    assert feature["title"].shape[1] == 3
    pairs = dataset.add_items(
        dataset.case_batch(dataset.cases[:2]), torch.tensor([[1, 2, 3], [3, 1, 2]])
    )
    assert pairs["item_id"].tolist() == [1, 2, 3, 3, 1, 2]
    assert pairs["user_id"].tolist() == (dataset.cases.user[:2].repeat(3) + 1).tolist()
    assert torch.equal(pairs["title"], feature["title"][pairs["item_id"]])


def test_long_sequences_of_a_feature_are_cut(folder, parts):
    dataset = parts("FDSA", folder, **FEATURES, seq_len={"title": 2})[0]
    assert dataset.item_feat["title"].shape[1] == 2


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (
            "FDSA",
            {"selected_features": ["class"]},
            "has no .item column class; it has title, brand, price",
        ),
        ("S3Rec", {"item_attribute": "class"}, "has no .item column class"),
        (
            "FM",
            {"load_col": {"inter": ["user_id", "item_id"], "item": ["item_id", "colour"]}},
            "has no .item column colour",
        ),
        (
            "FM",
            {"load_col": {"inter": ["user_id", "item_id"], "user": ["user_id", "age"]}},
            "has no .user column age; it has none",
        ),
        ("SASRec", {"load_col": {"inter": ["user_id", "item_id", "stars"]}}, "has no column stars"),
        ("FM", {"threshold": {"stars": 3}}, "has no column stars"),
        ("SASRec", {"val_interval": {"item_id": ["i1"]}}, "item_id"),
        ("KGAT", {}, "are not run by this harness"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(folder, parts, model, settings, message):
    with pytest.raises(UserError) as caught:
        parts(model, folder, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_feature_that_is_no_number_is_told(write, parts):
    folder = write(
        {
            "inter": [INTER, *random_rows()],
            "item": [ITEM, *((f"i{item}", "w", "b", f"${item}") for item in range(10))],
        }
    )
    with pytest.raises(UserError, match="column price: could not convert"):
        parts("FDSA", folder, **FEATURES)


def test_features_of_other_items_are_told(write, parts):
    """Every feature would be padding, which does not concern a model that reads none."""
    folder = write(
        {
            "inter": [INTER, *random_rows()],
            "item": [("item_id:token", "brand:token"), ("i0.0", "b")],
        }
    )
    with pytest.raises(
        UserError,
        match="no item_id of the events has a row in toy.item: "
        "the events have 'i[0-9]', the rows 'i0.0'; write the ids alike",
    ):
        parts("FDSA", folder, selected_features=["brand"])
    parts("SASRec", folder)


@pytest.mark.parametrize("name", ["toy", "to[y]", "*"])
def test_tables_are_read_again_when_a_file_changes(tmp_path, parts, name):
    """A name with characters of a glob pattern matched no file, and so hid the change."""
    folder = tmp_path / name
    folder.mkdir()
    for users in (5, 6):
        rows = [INTER, *random_rows([4] * users)]
        (folder / f"{name}.inter").write_text(
            "".join("\t".join(map(str, row)) + "\n" for row in rows)
        )
        assert len(parts("BPR", folder)[0].interactions.users) == users


def test_columns_of_events_arrive_with_their_events(write, parts):
    rows = [(*row, f"shop{place % 4}") for place, row in enumerate(random_rows())]
    folder = write({"inter": [(*INTER, "shop:token"), *rows]})
    known = {(user, time): own for user, _, time, *own in rows}
    for columns in ([*COLUMNS, "shop"], "*"):
        part = parts("SASRec", folder, dedup="none", load_col={"inter": columns})[0]
        interactions = part.interactions
        expected = [
            known[user, place]
            for user, place in zip(
                interactions.users[interactions.user], interactions.position, strict=True
            )
        ]
        assert part.events["rating"].tolist() == [rating for rating, _ in expected]
        assert part.id2token("shop", part.events["shop"]).tolist() == [shop for _, shop in expected]
    assert not {"rating", "shop"} & set(parts("SASRec", folder, dedup="none")[0].events.columns)


def test_labels_come_from_a_threshold(folder, parts):
    part = parts("FM", folder, dedup="none", threshold={"rating": 3})[0]
    expected = (part.interactions.columns["rating"] >= 3).astype(float)
    assert part.events["label"].tolist() == expected.tolist()
    assert 0 < expected.mean() < 1
