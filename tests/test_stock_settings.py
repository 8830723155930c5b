"""Settings of stock models: each runs, or one line refuses it.

A refusal comes before anything is trained and leaves nothing behind.
"""

import itertools
import json
import random
import re
import shlex

import pytest
import torch
from shops import there, write_shop
from suites import fast_only
from worlds import loaders_of

from recbole_llm.cli import main
from recbole_llm.errors import UserError
from recbole_llm.settings import layers, registry, stock
from recbole_llm.settings.defaults import stock_defaults

COMMON = (
    "--dataset=tiny",
    "--beside=[]",
    "--show_progress=false",
    "--epochs=1",
    "--MAX_ITEM_LIST_LENGTH=10",
)
LABELS = "--threshold.rating=4 --load_col.inter='[user_id, item_id, rating, timestamp]'"
FM = f"--model=FM {LABELS} --load_col.item='[item_id, price, vector]'"


@pytest.fixture(scope="module")
def shop_folder(tmp_path_factory):
    """A shop with a price, sometimes empty, a vector of numbers per item, and an hour per event."""
    folder = tmp_path_factory.mktemp("stock")
    write_shop(folder)
    rng = random.Random(0)
    data = folder / "dataset" / "tiny"
    head, *rows = (data / "tiny.item").read_text().splitlines()
    rows = [f"{row}\t{rng.choice(['', 5, 20, 80])}\t{rng.choice(['', '0.5 1 2'])}" for row in rows]
    (data / "tiny.item").write_text(
        "\n".join([f"{head}\tprice:float\tvector:float_seq", *rows, ""])
    )
    head, *rows = (data / "tiny.inter").read_text().splitlines()
    rows = [f"{row}\th{rng.randrange(3)}\t{rng.random()}" for row in rows]
    (data / "tiny.inter").write_text("\n".join([f"{head}\thour:token\tweight:float", *rows, ""]))
    return folder


@pytest.fixture
def command(shop_folder, tmp_path, monkeypatch, capfd):
    """command(line) -> (exit code, last line on stderr); every run of it is in one new folder."""
    (tmp_path / "dataset").symlink_to(shop_folder / "dataset")
    monkeypatch.chdir(tmp_path)

    def run(line):
        command, args = ([], shlex.split(line))
        if not args[0].startswith("--"):
            command = [args.pop(0)]
        capfd.readouterr()
        code = main([*command, *args, *COMMON])
        said = capfd.readouterr().err
        assert "Traceback" not in said
        return code, said.splitlines()[-1] if said else ""

    return run


REFUSED = {  # before anything is trained or written
    "--model=BPR --train_neg_sample_args=~": (
        r"train_neg_sample_args: BPR learns from sampled "
        r"negatives .* found none; leave the key out"
    ),
    "--model=LightGCN --train_neg_sample_args.distribution=~": (
        r"train_neg_sample_args: LightGCN .* found none"
    ),
    "--model=NeuMF --train_neg_sample_args=~": r"train_neg_sample_args: NeuMF learns",
    "--model=DIN --train_neg_sample_args=~": r"train_neg_sample_args: DIN learns",
    "--model=SASRec --loss_type=BPR --train_neg_sample_args=~": (
        r"train_neg_sample_args: SASRec learns"
    ),
    "compare --models=SASRec,BPR --train_neg_sample_args=~": r"train_neg_sample_args: BPR learns",
    "--model=SASRec --loss_type=ce": r"loss_type: SASRec expects CE or BPR, found 'ce'",
    "--model=GRU4Rec --loss_type=BCE": r"loss_type: GRU4Rec expects CE or BPR, found 'BCE'",
    "--model=CDAE --loss_type=CE": r"loss_type: CDAE expects BCE or MSE, found 'CE'",
    "--model=SASRecCPR --loss_type=BPR": r"loss_type: SASRecCPR expects CE, found 'BPR'",
    "--model=SASRec --learner=sdg": (
        r"learner: expected one of adam, .*, found 'sdg'; did you mean sgd"
    ),
    "--model=BPR --learner=addam": r"learner: .* found 'addam'; did you mean adam",
    "--model=UniSRec --learner=adma": r"learner: UniSRec .* found 'adma'; did you mean adam",
    "--model=CALRec --learner=sdg": r"learner: CALRec and the other text models know adam",
    "--model=SASRec --learner=sparse_adam": (
        r"learner: sparse_adam takes sparse gradients, and SASRec has none"
    ),
    "--model=SASRec --weight_decay=-1": r"weight_decay: expected a number from 0 up, found -1",
    "--model=SASRec --worker=1.5": r"worker: expected a whole number",
    "--model=SASRec --clip_grad_norm=5": (
        r"clip_grad_norm: expected a group such as \{name: value\}, found 5"
    ),
    "--model=SASRec --log_wandb=true": r"log_wandb: nothing is logged to Weights & Biases here",
    "--model=LIR --log_wandb=true": r"log_wandb: nothing is logged",
    "--model=SASRec --transform=mask_itemseq": (
        r"transform: SASRec reads its sequences as they are, found mask_itemseq"
    ),
    "--model=GRU4Rec --transform=user_defined": (
        r"transform: GRU4Rec reads its sequences as they are"
    ),
    "--model=BERT4Rec --transform=~": (
        r"transform: BERT4Rec reads its sequences by mask_itemseq, found none"
    ),
    "--model=SHAN --transform=crop_itemseq": (
        r"transform: SHAN reads its sequences by inverse_itemseq"
    ),
    "--model=BPR --preload_weight='{item_id: vector}'": (
        r"preload_weight: no model of this harness reads it"
    ),
    f"{FM} --numerical_features=[prise]": (
        r"numerical_features: expected columns of numbers that FM is given, "
        r"which are .*price, vector, found 'prise'; did you mean price"
    ),
    f"{FM} --numerical_features=[item_id]": r"numerical_features: .* item_id is a token column",
    f"{FM} --numerical_features=[rating]": (
        r"FM would read rating of the event that it is to predict"
    ),
    f"{FM} --numerical_features=[timestamp]": r"FM would read timestamp of the event",
    f"{FM} --normalize_field=[nothing]": (
        r"normalize_field: expected columns of numbers .* found 'nothing'; set load_col"
    ),
    f"{FM} --normalize_field=[rating]": r"normalize_field: .* threshold.rating makes labels of it",
    f"{FM} --normalize_field=[price] --normalize_all=true": (
        r"normalize_field and normalize_all both say"
    ),
    f"{FM} --normalize_all=price": r"normalize_all: expected true or false",
    f"{FM} --discretization='{{price: {{method: LD}}}}'": (
        r"discretization.price: expected one of numerical_features, which are none"
    ),
    f"{FM} --numerical_features=[price] --discretization='{{price: {{method: XX}}}}'": (
        r"discretization.price: expected \{method: ED, bucket: 10\} or"
    ),
    f"{FM} --numerical_features=[price] --discretization='{{price: {{method: ED}}}}'": (
        r"discretization.price.bucket: expected a whole number .* found none"
    ),
    f"{FM} --numerical_features=[price] --discretization='{{price: {{method: ED, bucket: 0}}}}'": (
        r"discretization.price.bucket: expected .* found 0"
    ),
    f"{FM} --numerical_features=[price] --discretization=3": r"discretization: expected a group",
    (
        "--model=FM --threshold.rating=4 --load_col.inter='[user_id, "
        "item_id, rating, timestamp, hour]'"
    ): r"FM would read hour of the event",
    (
        "--model=DeepFM --threshold.rating=4 --load_col.inter='[user_id, "
        "item_id, rating, timestamp, weight]' --numerical_features=[weight]"
    ): r"DeepFM would read weight of the event",
    "--model=S3Rec --item_attribute=price": (
        r"item_attribute: S3Rec learns to name the values of a token column, found price:float"
    ),
    "--model=S3Rec --item_attribute=vector": r"item_attribute: S3Rec .* found vector:float_seq",
    "--model=GRU4RecKG": (
        r"GRU4RecKG learns from a knowledge graph \(.kg, "
        r".link\): such models are not run by this harness"
    ),
    "--model=KSR": r"KSR learns from a knowledge graph",
    "--model=XGBoost": r"XGBoost: tree models are not run by this harness",
    # RecBole's own words
    "--model=SASRec --hidden_dropout_prob=2": (
        r"RecBole cannot build SASRec and its data from "
        r"these settings: ValueError: dropout probability"
    ),
    "--model=SASRec --hidden_act=foo": r"RecBole cannot build SASRec .*KeyError: 'foo'",
    "--model=MultiVAE --mlp_hidden_size=abc": r"RecBole cannot build MultiVAE .*TypeError",
    "--model=NNCF --neigh_num=1": r"RecBole cannot build NNCF",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_is_refused(line, command, tmp_path):
    before = there(tmp_path)
    code, said = command(line)
    assert code == 2 and said.startswith("error: ") and re.search(REFUSED[line], said), said
    assert there(tmp_path) == before


RUNS = (
    "--model=SASRec --learner=AdamW",
    "--model=SASRec --learner=RMSprop --clip_grad_norm='{max_norm: 5, norm_type: 2}'",
    "--model=SASRec --loss_type=BPR",
    "--model=SASRec --train_neg_sample_args=~",
    "--model=MultiVAE --train_neg_sample_args=~",
    "--model=BPR --train_neg_sample_args={}",
    f"{FM} --numerical_features=price",
    f"{FM} --numerical_features=~",
    f"{FM} --numerical_features=[price,vector] --normalize_field=[price]",
    f"{FM} --numerical_features=[price] --discretization='{{price: {{method: ED, bucket: 3}}}}'",
    f"{FM} --numerical_features=[vector] --discretization='{{vector: {{method: LD}}}}'",
    f"{FM} --normalize_all=true",
    "--model=SASRecF --selected_features=[price]",
    "--model=SASRecF --selected_features=[vector]",
    "--model=SASRecF --selected_features=[categories,vector,price]",
    "--model=FDSA --selected_features=[price]",
    "--model=GRU4RecF --selected_features=[vector]",
)


@pytest.mark.parametrize("line", fast_only(RUNS[::2], RUNS))
def test_what_can_be_runs(line, command, tmp_path):
    code, said = command(line)
    assert code == 0, said
    (run,) = tmp_path.glob("saved/*/run.json")
    assert json.loads(run.read_text())["status"] == "finished"


def built(model, folder, **settings):
    settings = layers.resolve(model, "tiny", [], {"use_gpu": False} | settings)
    made = layers.recbole_config(settings, folder / "dataset" / "tiny")
    train, _, _ = loaders_of(made)
    return registry.model_class(model)(made, train._dataset), train


@pytest.mark.parametrize("column", ["price", "vector"])
def test_a_column_of_numbers_is_a_feature(column, shop_folder):
    """A column is a feature with and without `numerical_features`; empty cells are its mean."""
    losses = []
    for settings in ({}, {"numerical_features": [column]}):
        torch.manual_seed(0)
        model, train = built("SASRecF", shop_folder, selected_features=[column], **settings)
        torch.manual_seed(0)
        losses.append(model.eval().calculate_loss(next(iter(train))).item())
    assert losses[0] == losses[1]
    torch.manual_seed(0)
    model, train = built("SASRecF", shop_folder, selected_features=[column])
    numbers = model.feature_embed_layer.item_feat[column]
    if column == "price":
        cells = [float(cell or "nan") for cell in train._dataset.interactions.item_table["price"]]
        mean = torch.tensor([cell for cell in cells if cell == cell]).mean().item()
        expected = torch.tensor([mean if cell != cell else cell for cell in cells])
        torch.testing.assert_close(numbers[1:, 0], expected)
    batch = next(iter(train))
    before = model.eval().calculate_loss(batch).item()
    numbers[..., 0] = numbers[..., 0] * 3 + 1
    assert model.calculate_loss(batch).item() != before


def test_one_learner_is_one_run():
    """However its name is written."""
    runs = [layers.resolve("SASRec", "any", [], {"learner": name}) for name in ("adamw", "AdamW")]
    assert runs[0] == runs[1]
    assert layers.resolve("CALRec", "any", [], {"learner": "Muon"})["learner"] == "muon"


def test_a_gpu_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        UserError, match="gpu_id: this machine has 2 GPUs, numbered from 0, found 3"
    ):
        layers.recbole_config(layers.resolve("SASRec", "any", [], {"gpu_id": 3}), tmp_path)


NOT_RUN = {"GRU4RecKG", "KSR"}
TRIED = [
    (name, family)
    for name, family in sorted(registry.stock_models().items())
    if family in ("general", "sequential") and name not in NOT_RUN
]
PAIRS = [(*model, loss) for model, loss in itertools.product(TRIED, ("CE", "BPR"))]
SMALL = {
    "ConvNCF": {"embedding_size": 64},
    "LDiffRec": {"n_cate": 1, "in_dims": [8], "out_dims": []},
}
# their first step fails on a catalogue of this size, needs a trainer of its own, or takes minutes
ELSEWHERE = {"GRU4RecCPR", "SASRecCPR", "NNCF", "NCL", "RecVAE", "DGCF", "SGL", "FEARec"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family", "loss"), PAIRS)
def test_which_models_need_negatives(name, family, loss, shop_folder, monkeypatch):
    """Oracle: the first step of the stock model without them."""
    default = layers.resolve(
        name,
        "tiny",
        [],
        SMALL.get(name, {}) | {"selected_features": ["categories"], "item_attribute": "categories"},
    )
    if family == "general" or "loss_type" not in stock_defaults(name):
        settings = {}
    else:
        settings = {"loss_type": loss}
    if name == "S3Rec":  # its first stage samples nothing
        settings["train_stage"] = "finetune"
    if name in ELSEWHERE or not settings and loss == "BPR":
        pytest.skip("told elsewhere")
    if settings and loss not in stock.LOSSES.get(name, ("CE", "BPR")):
        pytest.skip("a loss that the model does not have")
    needs = stock._samples(name, settings.get("loss_type", default.get("loss_type")))
    monkeypatch.setattr(stock, "check_settings", lambda settings, default: None)
    settings |= SMALL.get(name, {}) | {
        "selected_features": ["categories"],
        "item_attribute": "categories",
    }
    model, train = built(name, shop_folder, train_neg_sample_args=None, **settings)
    batch = next(iter(train))
    if needs:
        with pytest.raises(KeyError, match="neg_item_id|label"):
            model.calculate_loss(batch)
    else:
        model.calculate_loss(batch)


def test_a_run_that_fails_at_once_leaves_nothing(command, tmp_path, monkeypatch):
    """RecBole's own mistakes are told in its words, and a process that it would leave goes on."""
    from recbole.model.sequential_recommender.gru4rec import GRU4Rec

    for error in (RuntimeError("no such shape"), SystemExit(0), ZeroDivisionError("by zero")):

        def fail(self, interaction, error=error):
            raise error

        monkeypatch.setattr(GRU4Rec, "calculate_loss", fail)
        code, said = command("--model=GRU4Rec")
        assert code == 2
        words = f"{type(error).__name__}: {error}"
        beginning = f"error: RecBole cannot train GRU4Rec with these settings: {words} (in "
        assert said.startswith(beginning) and re.search(r"recbole\.\S+, line \d+\)$", said), said
        assert not list(tmp_path.glob("saved/*"))


def test_a_fault_of_ours_is_no_refusal(command, monkeypatch):
    """Only of RecBole's models are errors taken for refusals; and the disk's are never."""
    assert stock.refusal("SASRec", "train", OSError("full")).__class__ is OSError
    assert stock.refusal("CALRec", "train", ValueError("ours")).__class__ is ValueError
    assert isinstance(stock.refusal("SASRec", "train", ValueError("a\nb")), UserError)


def test_a_run_that_diverges(command, tmp_path, monkeypatch):
    """At first it leaves nothing; later it is marked, and its stored state stays."""
    code, said = command("--model=SASRec --learning_rate=1e30 --learner=sgd")
    assert code == 2 and "diverged" in said and not list(tmp_path.glob("saved/*"))
    from recbole.model.sequential_recommender.gru4rec import GRU4Rec

    original, calls = GRU4Rec.calculate_loss, []

    def diverge(self, interaction):
        calls.append(1)
        return original(self, interaction) * (float("nan") if len(calls) > 1 else 1)

    monkeypatch.setattr(GRU4Rec, "calculate_loss", diverge)
    code, said = command("--model=GRU4Rec --stopping_step=0 --train_batch_size=1000")
    assert code == 0 and len(calls) == 1  # one step an epoch
    calls.clear()
    monkeypatch.setattr("test_stock_settings.COMMON", (*COMMON[:-1], "--epochs=3"))
    code, said = command("--model=GRU4Rec --train_batch_size=1000")
    assert code == 2 and "diverged" in said
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("saved/*/run.json")]
    assert sorted(run["status"] for run in runs) == ["failed", "finished"]


def test_a_failed_run_goes_on_when_its_command_is_given_again(command, tmp_path, monkeypatch):
    """The same command goes on from the stored state; another one says that it is not finished."""
    from recbole.model.sequential_recommender.gru4rec import GRU4Rec

    original, calls = GRU4Rec.calculate_loss, []

    def diverge(self, interaction):
        calls.append(1)
        return original(self, interaction) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(GRU4Rec, "calculate_loss", diverge)
    monkeypatch.setattr("test_stock_settings.COMMON", (*COMMON[:-1], "--epochs=3"))
    line = "--model=GRU4Rec --train_batch_size=1000"  # one step an epoch
    assert command(line)[0] == 2
    (path,) = tmp_path.glob("saved/*/run.json")
    assert json.loads(path.read_text())["status"] == "failed"
    code = main(["recommend", f"--checkpoint={path.parent.name}", "--user=u1"])
    assert code == 2 and len(calls) == 2
    assert command(line)[0] == 0 and len(calls) == 4  # the first epoch is not trained again
    assert json.loads(path.read_text())["status"] == "finished"


def test_every_check_comes_before_the_first_model_is_trained(command, tmp_path):
    """In a table of several models too."""
    code, said = command("compare --models=Pop,GRU4Rec,S3Rec --item_attribute=price")
    assert code == 2 and "item_attribute" in said and not list(tmp_path.glob("saved/*"))
