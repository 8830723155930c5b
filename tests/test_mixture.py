"""One training reads several datasets: how often users are drawn, what is read, and two stages."""

import itertools
import json
from collections import defaultdict

import numpy as np
import pytest
from worlds import prepared, settings_for, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.runs.commands import evaluate_run, run_settings
from recbole_llm.settings import defaults
from recbole_llm.training.corpora import draw_users


def test_users_are_drawn_in_proportion_to_their_number_to_the_power_0_3():
    sizes = (100, 3000, 800)
    drawn = draw_users(sizes, seed=1, epoch=0, exponent=0.3)
    expected = np.array(sizes) ** 0.3 / (np.array(sizes) ** 0.3).sum()
    assert np.array([len(users) for users in drawn]) / sum(sizes) == pytest.approx(
        expected, abs=1e-3
    )
    for size, users in zip(sizes, drawn, strict=True):
        counts = np.bincount(users, minlength=size)
        assert len(counts) == size and counts.max() - counts.min() <= 1
    again, later = draw_users(sizes, 1, 0, 0.3), draw_users(sizes, 1, 1, 0.3)
    assert (
        all((one == other).all() for one, other in zip(drawn, again, strict=True))
        and not (drawn[1] == later[1]).all()
    )
    assert draw_users([5], 1, 0, 0.3)[0].tolist() == [0, 1, 2, 3, 4]


@pytest.fixture
def shops(tmp_path):
    write_cycle(tmp_path, users=10, name="cycle")
    write_cycle(tmp_path, users=20, name="other", seed=1)
    path = tmp_path / "other" / "other.item"
    path.write_text(path.read_text().replace("juice", "soup"))
    return tmp_path


def test_the_other_datasets_texts_and_training_parts_are_read(shops):
    _, model, _, _ = prepared("CALRec", shops, datasets=["cycle", "other"], max_length=1024)
    own, other = model.corpora
    assert "juice" in own.sentences[0] and "soup" in other.sentences[0]
    assert len(other.cases) == 20 * 5  # eight events: neither the first nor the two held out
    texts = [model.bundle.tokenizer.decode(tokens.ids) for tokens, _ in model.examples(0)]
    soups = sum("soup" in text for text in texts)
    assert (
        soups / len(texts) == pytest.approx(20**0.3 / (20**0.3 + 10**0.3), abs=0.04)
        and len(texts) == 30
    )
    assert not [text for text in texts if "soup" in text and "juice" in text]


def test_two_stages_over_two_datasets(shops):
    own = {"stages": ["joint", "target"], "datasets": ["cycle", "other"], "select_on": "other"}
    run = run_settings(settings_for("CALRec", shops, **own))
    rows = [
        json.loads(line) for line in (shops / "saved" / "results.jsonl").read_text().splitlines()
    ]
    assert [(row["stage"], row["dataset"]) for row in rows] == [
        ("joint", "other"),
        ("target", "cycle"),
    ]
    target = json.loads((run.folder / "run.json").read_text())["settings"]
    assert target["datasets"] is None and rows[0]["run"] in target["init_from"]
    again = run_settings(
        settings_for("CALRec", shops, "other", **own)
    )  # the joint stage serves both
    rows = [
        json.loads(line) for line in (shops / "saved" / "results.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 3 and again.row["dataset"] == "other" and again.row["stage"] == "target"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"select_on": "other"}, "select_on is of a stage.*--dataset=other"),
        ({"stages": ["joint", "target"]}, "joint trains on several datasets"),
        (
            {
                "stages": ["joint"],
                "datasets": ["cycle", "other"],
                "stage_settings": {"joint": {"datasets": None}},
            },
            "joint trains on several datasets",
        ),
        (
            {"stages": ["target"], "stage_settings": {"target": {"select_on": "other"}}},
            "select_on: other is to be one of --datasets",
        ),
    ],
)
def test_stages_without_their_datasets_are_refused(shops, own, message):
    with pytest.raises(UserError, match=message):
        run_settings(settings_for("CALRec", shops, **own))
    assert not (shops / "saved").exists()


def test_whole_datasets_train_by_all_events_and_are_never_tested_on(shops):
    own = {"datasets": ["cycle", "other"], "whole": ["other"], "epochs": 0}
    _, model, _, _ = prepared("CALRec", shops, **own)
    assert [len(corpus.cases) for corpus in model.corpora] == [10 * 5, 20 * 7]
    joint = run_settings(settings_for("CALRec", shops, **own))
    run_settings(settings_for("CALRec", shops, init_from=joint.folder.name))
    with pytest.raises(
        UserError, match="trained on 20 of the 20 test targets, by all of its events"
    ):
        run_settings(settings_for("CALRec", shops, "other", init_from=joint.folder.name))
    for wrong in ("cycle", "nowhere"):
        with pytest.raises(UserError, match=rf"whole: .*not tested on \(other\), found {wrong}"):
            run_settings(settings_for("CALRec", shops, **own | {"whole": [wrong]}))


def test_a_mixture_is_evaluated_anywhere_that_it_has_not_seen(shops):
    write_cycle(shops, users=20, name="third", seed=2)
    joint = run_settings(
        settings_for("CALRec", shops, datasets=["cycle", "other"], whole=["other"], epochs=0)
    )
    settings = json.loads((joint.folder / "run.json").read_text())["settings"]
    assert evaluate_run(joint.folder, settings | {"dataset": "third"}).row["cases"] == 20
    with pytest.raises(UserError, match="20 of the 20 test targets, by all of its events"):
        evaluate_run(joint.folder, settings | {"dataset": "other"})


def test_another_base_name_of_the_files_hides_nothing(shops):
    (shops / "own").mkdir()
    for path in (shops / "cycle").iterdir():
        (shops / "own" / f"files{path.suffix}").write_text(path.read_text())
    joint = run_settings(
        settings_for(
            "CALRec",
            shops,
            "own",
            data_name="files",
            datasets=["own", "other"],
            whole=["other"],
            epochs=0,
        )
    )
    with pytest.raises(UserError, match="20 of the 20 test targets"):
        run_settings(settings_for("CALRec", shops, "other", init_from=joint.folder.name))


def test_real_data_in_the_place_of_a_sample_is_what_is_read_and_guarded(shops):
    write_cycle(shops, users=25, name="Pet", seed=3)
    _, model, _, _ = prepared("CALRec", shops, datasets=["cycle", "Pet"])
    assert len(model.corpora[1].by_user) == 25
    run = run_settings(settings_for("LIR", shops, "Pet"))
    with pytest.raises(UserError, match="test targets"):
        evaluate_run(
            run.folder,
            settings_for("LIR", shops, "Pet", **{"eval_args.split": {"RS": [0.1, 0.1, 0.8]}}),
        )


def test_a_start_from_a_mixture_that_saw_the_targets_is_refused(shops):
    joint = run_settings(
        settings_for("CALRec", shops, "other", datasets=["cycle", "other"], epochs=0)
    )
    later = {"eval_args.split": {"temporal": [0.2, 0.2, 0.6]}}
    with pytest.raises(UserError, match=r"was trained on \d+ of the \d+ test targets"):
        run_settings(
            settings_for("CALRec", shops, "cycle", init_from=joint.folder.name, epochs=0, **later)
        )
    with pytest.raises(UserError, match=r"was trained on \d+ of the \d+ test targets"):
        evaluate_run(
            joint.folder,
            settings_for("CALRec", shops, "cycle", datasets=["cycle", "other"], epochs=0, **later),
        )
    assert (
        run_settings(
            settings_for("CALRec", shops, "cycle", init_from=joint.folder.name, epochs=0)
        ).row["dataset"]
        == "cycle"
    )


def test_the_dataset_that_chooses_is_one_of_them(shops):
    with pytest.raises(UserError, match="datasets: cycle chooses the checkpoint .* found other"):
        run_settings(settings_for("CALRec", shops, datasets=["other"]))


def test_other_data_is_another_run(shops):
    first = prepared("CALRec", shops, datasets=["cycle", "other"])[0].run_id
    path = shops / "other" / "other.item"
    path.write_text(path.read_text().replace("soup", "stew"))
    assert prepared("CALRec", shops, datasets=["cycle", "other"])[0].run_id != first


def test_the_same_events_under_another_name_are_the_same(shops):
    write_cycle(shops, users=5, name="part")  # the first of cycle's users
    own = {"datasets": ["cycle", "part"], "whole": ["part"], "epochs": 0}
    with pytest.raises(
        UserError,
        match="CALRec-cycle-.* learns part, and was trained on 5 of the 10 test targets, "
        "by all of its events",
    ):
        run_settings(settings_for("CALRec", shops, **own))
    joint = run_settings(
        settings_for("CALRec", shops, "other", datasets=["other", "part"], whole=["part"], epochs=0)
    )
    with pytest.raises(UserError, match="learns part, and was trained on 5 of the 10 test targets"):
        evaluate_run(
            joint.folder,
            json.loads((joint.folder / "run.json").read_text())["settings"] | {"dataset": "cycle"},
        )


def test_other_settings_of_a_dataset_make_another_run_and_what_a_run_learned_stays_known(
    shops, monkeypatch
):
    def with_other(content):
        monkeypatch.setattr(
            defaults,
            "cached_yaml",
            lambda path: dict(content) if path.name == "other.yaml" else inner(path),
        )

    inner, own = defaults.cached_yaml, {"datasets": ["cycle", "other"], "epochs": 0}
    run = run_settings(settings_for("CALRec", shops, **own))
    for content in (
        {"text_words": {"Title": 1}},
        {"eval_args": {"split": {"RS": [0.2, 0.2, 0.6]}}},
    ):
        with_other(content)
        assert prepared("CALRec", shops, **own)[0].run_id != run.row["run"]
    with pytest.raises(
        UserError,
        match=r"was trained on \d+ of the \d+ test targets, by the split .*valid_and_test",
    ):
        evaluate_run(run.folder, settings_for("CALRec", shops, "other", **own))


def test_events_of_files_that_are_split_already_are_those_of_the_plain_file(shops):
    """Pre-split files do not tell the events' times."""
    rows = [
        line.split("\t") for line in (shops / "cycle" / "cycle.inter").read_text().splitlines()[1:]
    ]
    users = defaultdict(list)
    for user, item, _ in rows:
        users[user].append(item)
    for part, places in (("train", range(1, 6)), ("valid", [6]), ("test", [7])):
        lines = [
            f"{user}\t{' '.join(items[:place])}\t{items[place]}"
            for (user, items), place in itertools.product(users.items(), places)
        ]
        (shops / "cycle" / f"cycle.{part}.inter").write_text(
            "\n".join(["user_id:token\titem_id_list:token_seq\titem_id:token", *lines]) + "\n"
        )
    run = run_settings(
        settings_for("CALRec", shops, benchmark_filename=["train", "valid", "test"], epochs=0)
    )
    assert evaluate_run(run.folder, settings_for("CALRec", shops, epochs=0)).row["cases"] == 10
    with pytest.raises(UserError, match=r"was trained on 30 of the 50 test targets"):
        evaluate_run(
            run.folder,
            settings_for("CALRec", shops, epochs=0, **{"eval_args.split": {"RS": [0.1, 0.1, 0.8]}}),
        )
