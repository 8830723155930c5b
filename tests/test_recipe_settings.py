"""What a prepared dataset sets: never a model's own text without a group for that model."""

import pytest
import raw
import yaml

from recbole_llm import cli
from recbole_llm.data.prepare.sources import catalogue
from recbole_llm.data.prepare.sources import own as own_tables
from recbole_llm.settings import layers, registry, schema
from recbole_llm.studies import experiments

# Recipe: columns of the text of ST5Seq and of TASTELoRA, where it is not the title alone.
TEXTS = {
    "Yelp": (["title", "description"], ["title", "address", "city", "state"]),
    "Yelp-ST5": (["title", "description"], ["title"]),
    "ml-100k": (["movie_title"], ["movie_title", "release_year", "class"]),
    "ml-1m": (["movie_title"], ["movie_title", "release_year", "class"]),
}
RECIPES = [
    "Scientific",
    "Toys",
    "All_Beauty-23",
    "Video_Games-23-5core",
    "Yelp",
    "Yelp-ST5",
    "Amazon-M2",
    "MIND-small",
    "ml-100k",
    "ml-1m",
]


def stand_in(folder, recipe):
    """A prepared dataset's settings beside an empty table: settings are read from nothing else."""
    (folder / recipe.name).mkdir(parents=True, exist_ok=True)
    (folder / recipe.name / f"{recipe.name}.inter").write_text("user_id:token\titem_id:token\n")
    (folder / recipe.name / f"{recipe.name}.yaml").write_text(
        yaml.safe_dump(recipe.settings, sort_keys=False)
    )
    return {"data_path": str(folder)}


def own_recipe(folder):
    """Of tables with a title and further columns, one of them a description."""
    (folder / "e.csv").write_text("u,i,t\na,x,1\n")
    (folder / "i.csv").write_text("i,name,maker,about\nx,X,M,long\n")
    files = {"inter": folder / "e.csv", "items": folder / "i.csv"}
    return own_tables.recipe(
        "own", files, "user=u,item=i,time=t,title=name,brand=maker,description=about"
    )


@pytest.mark.parametrize("name", RECIPES)
def test_texts_of_models_that_have_their_own(tmp_path, name):
    where = stand_in(tmp_path, catalogue.find(name))
    for model, expected in zip(("ST5Seq", "TASTELoRA"), TEXTS.get(name, (["title"],) * 2)):
        assert list(layers.resolve(model, name, [], where)["text_fields"].values()) == expected


def test_own_tables_leave_a_models_own_text_alone(tmp_path):
    where = stand_in(tmp_path, own_recipe(tmp_path))
    for model in ("ST5Seq", "TASTELoRA"):
        assert layers.resolve(model, "own", [], where)["text_fields"] == {"Title": "title"}
    assert list(layers.resolve("CALRec", "own", [], where)["text_fields"]) == [
        "Title",
        "Brand",
        "Description",
    ]
    chosen = {"text_fields": {"About": "description"}}
    assert layers.resolve("ST5Seq", "own", [], where | chosen)["text_fields"] == {
        "About": "description"
    }


def test_no_recipe_silently_replaces_what_a_models_own_file_sets(tmp_path):
    """Only TASTE-LoRA takes a dataset's text: in its paper Yelp has addresses, films have years."""
    wide = {"TASTELoRA": {"Yelp", "ml-100k", "ml-1m"}, "ST5Seq": {"Yelp-ST5"}}
    for recipe in [*catalogue.recipes().values(), own_recipe(tmp_path)]:
        shared = recipe.settings.keys() - registry.OURS.keys() - set(layers.MERGED)
        for model in registry.OURS:
            own = schema.layer(registry.find(model).settings).keys()
            replaced = (shared & own) - recipe.settings.get(model, {}).keys()
            assert not replaced or recipe.name in wide.get(model, ()), (
                recipe.name,
                model,
                replaced,
            )


@pytest.mark.parametrize(
    "name", ["variants", "zero_shot", "rating", "history_length", "projection", "text_forms"]
)
def test_experiments_read_the_title_alone_on_prepared_amazon_2023(tmp_path, name):
    found = experiments.read(name, paper=True)
    seen = 0
    for dataset in [dataset for dataset in found.datasets if dataset.endswith("-23")]:
        for row, settings in found.rows.items():
            for one in {dataset, settings.get("trained_on", dataset)}:
                stand_in(tmp_path, catalogue.find(one))
            if settings["model"] == "ST5Seq":
                resolved = found.resolved(row, dataset, [], {"data_path": str(tmp_path)}, {})
                told = row == "with description"
                expected = {"Title": "title"} | ({"Description": "description"} if told else {})
                assert resolved["text_fields"] == expected, (dataset, row)
                seen += 1
    assert seen >= 2


def test_rows_of_text_forms_are_different_runs(tmp_path):
    """Also where a dataset's own settings were written before they had a group for ST5Seq."""
    recipe = catalogue.find("All_Beauty-23")
    old = {"text_fields": recipe.settings["text_fields"]}
    for settings in (recipe.settings, old):
        where = stand_in(tmp_path, recipe)
        (tmp_path / recipe.name / f"{recipe.name}.yaml").write_text(
            yaml.safe_dump(settings, sort_keys=False)
        )
        found = experiments.read("text_forms", paper=True)
        runs = [
            layers.settings_hash(found.resolved(row, recipe.name, [], where, {}))
            for row in found.rows
        ]
        assert len(set(runs)) == len(runs) == 5


@pytest.fixture(scope="module")
def beauty(tmp_path_factory):
    """A small All_Beauty-23, prepared by the command."""
    pytest.importorskip("duckdb")
    folder = tmp_path_factory.mktemp("beauty")
    raw.amazon2023(folder)
    args = ["prepare", "All_Beauty-23", f"--raw={folder}", f"--data_path={folder / 'data'}"]
    assert cli.main(args) == 0
    return folder


def quick(folder):
    return [
        f"--data_path={folder / 'data'}",
        f"--checkpoint_dir={folder / 'saved'}",
        "--show_progress=false",
        "--use_gpu=false",
    ]


@pytest.mark.slow
def test_tables_of_text_forms_are_made_from_a_prepared_dataset(beauty, capsys):
    small = ["--ST5Seq.backbone=scratch:tiny", "--ST5Seq.scratch_vocabulary=300"]
    args = ["experiment", "text_forms", "--paper", "--dataset=All_Beauty-23", *quick(beauty)]
    assert cli.main([*args, *small]) == 0
    out = capsys.readouterr().out
    rows = ["structured", "unstructured", "instruction, structured", "instruction, unstructured"]
    assert all(f"\n{row} " in out for row in [*rows, "with description"]), out


@pytest.mark.parametrize("fields", ["{Title: title, Description: description}", "{T: description}"])
def test_an_item_text_that_holds_its_description_is_refused(beauty, capsys, fields):
    args = ["--model=ST5Seq", "--variant=final", "--dataset=All_Beauty-23", *quick(beauty)]
    before = sorted((beauty / "saved").glob("*"))
    assert cli.main([*args, f"--text_fields={fields}"]) == 2
    error = capsys.readouterr().err
    assert "phase item pairs an item's text with its description" in error
    assert "--text_fields='{Title: title}'" in error and error.count("\n") == 1, error
    assert sorted((beauty / "saved").glob("*")) == before, "told before anything is stored"


def test_no_other_phase_and_no_other_column_is_refused(beauty):
    from recbole_llm.runs.checks import check
    from recbole_llm.runs.spec import describe

    both = {"text_fields": {"Title": "title", "Description": "description"}}
    where = {"data_path": str(beauty / "data"), "checkpoint_dir": str(beauty / "saved")}
    for settings in (
        both | {"phase": "next"},
        both | {"phase": "item", "description_fields": {"Category": "categories"}},
    ):
        check(describe(layers.resolve("ST5Seq", "All_Beauty-23", [], where | settings)))


def test_another_dataset_of_a_joint_phase_is_looked_at_too(beauty, capsys):
    """Its own settings are those that it was prepared with, here ones that hold the description."""
    import shutil

    other = beauty / "data" / "other"
    shutil.copytree(beauty / "data" / "All_Beauty-23", other, dirs_exist_ok=True)
    for path in list(other.glob("All_Beauty-23.*")):
        path.rename(other / path.name.replace("All_Beauty-23", "other"))
    (other / "other.yaml").write_text(
        yaml.safe_dump({"text_fields": {"Title": "title", "About": "description"}})
    )
    args = ["--model=ST5Seq", "--phase=item", "--dataset=All_Beauty-23", *quick(beauty)]
    assert cli.main([*args, "--datasets=[All_Beauty-23, other]"]) == 2
    error = capsys.readouterr().err
    assert "the text on other has the description" in error and "About" in error, error
