"""A user's mistake ends in a line that says what to do, exit code 2, and nothing half-written."""

import json
import re
import shlex
import shutil

import pytest
from shops import edit, process, rows_of, there, write_shop

from recbole_llm.cli import main


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Return refused(*arguments, folder), which returns the message of a command that must fail.

    It checks that the message has three lines at most, the exit code is 2, and nothing is written.
    """

    def run(*args, folder=tmp_path):
        monkeypatch.chdir(folder)
        before = there(folder)
        code = main(list(args))
        said = capfd.readouterr()
        assert code == 2 and said.out == "", (code, said)
        assert (
            said.err.startswith("error: ")
            and said.err.endswith("\n")
            and said.err.count("\n") <= 3
            and "Traceback" not in said.err
        )
        assert there(folder) == before
        return said.err

    return run


ARGUMENTS = {  # told before any data is read
    "--model=SASRek --dataset=tiny": r"unknown model 'SASRek': did you mean SASRec",
    "--model=LIR --dataset=tiny --learning_rat=1": (
        r"unknown key 'learning_rat': did you mean learning_rate"
    ),
    "--model=LIR --dataset=tiny --eval_args.mod=full": (
        r"unknown key 'eval_args.mod': expected one of .*mode"
    ),
    (
        "--model=LIR --dataset=tiny --hidden_size=3"
    ): r"unknown key 'hidden_size'",  # other models have it
    "--model=LIR --dataset=tiny --topk.a=1": r"topk is a list, not a group",
    "--model=LIR --dataset=tiny --epochs 3": r"argument '--epochs': expected --key=value",
    "--model=LIR --dataset=tiny epochs=3": r"argument 'epochs=3': expected --key=value",
    "--model": r"--model: expected one argument",
    "--model=LIR": r"--dataset=… is missing",
    "--dataset=tiny": r"--model=… is missing",
    "train --model=LIR": r"unknown command 'train': expected one of run, compare",
    "--model=LIR --dataset=tiny --epochs=abc": r"epochs: expected a number, found 'abc'",
    "--model=LIR --dataset=tiny --epochs=1.5": r"epochs: expected a whole number",
    "--model=LIR --dataset=tiny --epochs=-1": (
        r"epochs: expected a whole number from 0 up, found -1"
    ),
    "--model=LIR --dataset=tiny --train_batch_size=0": (
        r"train_batch_size: expected a whole number from 1 up"
    ),
    "--model=LIR --dataset=tiny --learning_rate=fast": (
        r"learning_rate: expected a number, found 'fast'"
    ),
    "--model=LIR --dataset=tiny --show_progress=maybe": r"show_progress: expected true or false",
    "--model=LIR --dataset=tiny --seed=~": r"seed: expected a whole number",
    "--model=LIR --dataset=tiny --topk=0": r"topk: expected positive integers, found 0",
    "--model=LIR --dataset=tiny --topk=5": (
        r"valid_metric: expected one of .*ndcg@5.*, found 'NDCG@10'"
    ),
    "--model=LIR --dataset=tiny --metrics=AUC": (
        r"metrics: expected some of Recall, Hit, NDCG, MRR, Precision, MAP, found 'AUC'"
    ),
    "--model=LIR --dataset=tiny --eval_args=full": r"eval_args: expected a group",
    "--model=LIR --dataset=tiny --eval_args.mode=uni0": (
        r"expected full or uniK such as uni20, found 'uni0'"
    ),
    "--model=LIR --dataset=tiny --eval_args.mode='{tets: uni5}'": r"one for valid and one for test",
    "--model=LIR --dataset=tiny --eval_args.order=RO": r"order is always TO",
    "--model=LIR --dataset=tiny --precision=int8": (
        r"precision: expected fp32, bf16 or fp16, found 'int8'"
    ),
    "--model=LIR --dataset=tiny --stages=[pretrain]": r"stages: expected some of none",
    "--model=S3Rec --dataset=Pet --stages='[pretrain, tune]'": (
        r"stages: expected some of pretrain, finetune.* found 'tune'"
    ),
    "--model=SASRec --dataset=tiny --train_neg_sample_args.sample_num=2": (
        r"SASRec with loss_type CE draws no negatives"
    ),
    "--model=LIR --dataset=tiny --beside=[Popp]": r"unknown model 'Popp': did you mean Pop",
    "--model=LIR --dataset=tiny --config_files=none.yaml": r"settings file none.yaml not found",
    "--model=LIR --dataset=tiny --config_files=bytes.yaml": r"bytes.yaml: not YAML",
    "--model=LIR --dataset=tiny --config_files=list.yaml": (
        r"list.yaml: expected `key: value` lines, found a list"
    ),
    "--model=LIR --dataset=tiny --config_file=key.yaml": (
        r"unknown key 'config_file': did you mean config_files"
    ),
    "--model=LIR --dataset=tiny --config_file_list=[key.yaml]": (
        r"unknown key 'config_file_list': did you mean config_files"
    ),
    "--model=LIR --dataset=tiny --config_files=key.yaml,list.yaml": (
        r"settings file key.yaml,list.yaml not found; several are separated by spaces"
    ),
    "--model=LIR --dataset=tiny --config_files=key.yaml": (
        r"unknown key 'epoch': did you mean epochs"
    ),
    "--model=LIR --dataset=tiny --config_files=model.yaml": (
        r"model.yaml: its model is Pop, but LIR is asked for"
    ),
    "experiment nothing": r"unknown experiment 'nothing': expected one of history_length",
    "experiment variants --LIR.last=2": r"unknown key 'last'",
    "experiment variants --SASRec.epochs=2": (
        r"SASRec is not among the models, which are Pop, LIR, ST5Seq"
    ),
    "--model=ST5Seq --dataset=Pet --variant=best": (
        r"variant: expected only, finetune, itempre or final, found 'best'"
    ),
    "--model=ST5Seq --dataset=Pet --augmentation.crop=2": (
        r"augmentation.crop: expected .* up to 1, found 2"
    ),
    "--model=CALRec --dataset=Pet --item_features=text": r"item_features: expected id for CALRec",
    "recommend --checkpoint=x --user=1 --index=flat": r"run 'x'",
    "compare --models=Pop --dataset=tiny --LIR.last_n=2": (
        r"--LIR.last_n: LIR is not among the models, which are Pop"
    ),
    "compare --models=Pop,LIR --dataset=tiny --last_n=2": r"unknown key 'last_n'",  # Pop has none
    "compare --models=Pop --dataset=tiny --seeds=1,a": r"seed: expected a number, found 'a'",
    "compare --models=Pop --dataset=tiny --seeds=1,1": (
        r"seeds: expected different ones, found 1 2 times"
    ),
    "--model=LIR --dataset=tiny --seeds=2,1,2": r"seeds: expected different ones, found 2 2 times",
    "compare --models=LIR,Pop --dataset=tiny --config_files=seeds.yaml": (
        r"seeds: expected different ones, found 3 2 times"
    ),
    "--model=LIR --dataset=none": (
        r"dataset 'none': expected dataset/none/none.inter, found there: tiny; make it"
    ),
    "--model=LIR --dataset=tiny --data_path=nowhere": (
        r"dataset 'tiny': expected nowhere/tiny/tiny.inter, nothing is there"
    ),
    "--model=SASRec --dataset=tiny --init_from=nobody": (
        r"run 'nobody': expected a run folder or id below saved, found none"
    ),
    "--resume=nobody": r"run 'nobody': expected a run folder or id below saved, found none",
    "--resume=x --model=LIR": r"--resume goes on with a run as it is: leave out --model",
    "evaluate --dataset=tiny": r"--checkpoint=… is missing",
    "evaluate --checkpoint=nobody": (
        r"run 'nobody': expected a run folder or id below saved, found none"
    ),
    "evaluate --checkpoint=/nobody": (
        r"run '/nobody': expected a run folder or id below saved, found none"
    ),
    "evaluate --checkpoint=dataset": (
        r"run 'dataset': expected a run folder or id below saved, found none"
    ),
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Write a folder with the dataset and some settings files, and no run."""
    folder = tmp_path_factory.mktemp("bare")
    write_shop(folder)
    for name, content in {
        "bytes": b"epochs: \xff",
        "list": b"- epochs",
        "key": b"epoch: 1",
        "model": b"model: Pop",
        "seeds": b"seeds: [3, 3]",
    }.items():
        (folder / f"{name}.yaml").write_bytes(content)
    return folder


@pytest.mark.parametrize("line", ARGUMENTS)
def test_arguments_that_cannot_be(line, bare, refused):
    assert re.search(ARGUMENTS[line], refused(*shlex.split(line), folder=bare))


PREPARED = {  # dataset/tiny/tiny.yaml: what is said of it
    "CALRec: 5": r"CALRec: expected a group of settings, found 5",
    "CALRec: [epochs]": r"CALRec: expected a group of settings, found \['epochs'\]",
    "CALRec: {scratch: 3}": r"CALRec.scratch: expected a group of settings, found 3",
    "scratch: [1]": r"scratch: expected a group of settings, found \[1\]",
    "scratch: {epoch: 1}": r"unknown key 'epoch': did you mean epochs",
    "TALLRec: 5": r"TALLRec: expected a group of settings, found 5",  # of another model
    "epochs: many": r"epochs: expected a number, found 'many'",
    "epoch: 3": r"unknown key 'epoch': did you mean epochs",
    "1: 3": r"unknown key '1'",
    "CALRec: {epochs: -1}": r"epochs: expected a whole number from 0 up, found -1",
    "- 5": r"expected `key: value` lines, found a list",
    "valid_metric: NDCG@7": r"valid_metric: expected one of .*, found 'NDCG@7'",
}


@pytest.mark.parametrize("content", PREPARED)
def test_mistakes_in_the_settings_beside_the_data_name_their_file(content, tmp_path, refused):
    write_shop(tmp_path)
    path = tmp_path / "dataset" / "tiny" / "tiny.yaml"
    path.write_text(content + "\n")
    calrec = ("--model=CALRec", "--dataset=tiny", "--beside=[]", "--backbone=scratch:tiny")
    assert re.search(rf"error: dataset/tiny/tiny.yaml: {PREPARED[content]}", refused(*calrec))


def test_mistakes_of_the_command_do_not_name_the_settings_beside_the_data(tmp_path, refused):
    write_shop(tmp_path)
    path = tmp_path / "dataset" / "tiny" / "tiny.yaml"
    for content in ("TASTELoRA: ~\nCALRec: ~\nscratch: ~\nseed: 5", "epochs: many"):
        path.write_text(content + "\n")
        said = refused("--model=CALRec", "--dataset=tiny", "--beside=[]", "--train_batch_size=0")
        assert said.startswith("error: train_batch_size: expected"), said


POP_LIR, GRU = ("--model=LIR", "--beside=[Pop]"), ("--model=GRU4Rec", "--beside=[]")
DATA = {  # name: (arguments, file to change, change, what is said)
    "an id column under another name": (
        POP_LIR,
        "inter",
        lambda text: text.replace("item_id:", "product:", 1),
        (
            r"tiny.inter: expected a column item_id, found user_id, product, rating, "
            r"timestamp; rename it"
        ),
    ),
    "a line that was cut": (
        POP_LIR,
        "inter",
        lambda text: re.sub(r"(?s)((?:[^\n]*\n){4}[^\t]*\t[^\t]*)[^\n]*", r"\1", text, count=1),
        r"tiny.inter, line 5: expected 4 cells, found 2",
    ),
    "a word in a column of numbers": (
        POP_LIR,
        "inter",
        lambda text: re.sub(r"\t\d+\n(?=u39)", "\tyesterday\n", text, count=1),
        r"tiny.inter, line \d+: expected a number.* column timestamp, found 'yesterday'",
    ),
    "no text at all": (
        POP_LIR,
        "item",
        lambda text: re.sub(r"\n(i\d+)\t.*", r"\n\1\t\t", text),
        r"dataset tiny: every cell of title, categories is empty",
    ),
    "no column of text": (
        POP_LIR,
        "item",
        lambda text: text.replace("title:", "name:").replace("categories:", "kind:"),
        r"dataset tiny has no text: .*set text_fields",
    ),
    "a split that leaves no test case": (
        (*POP_LIR, "--eval_args.split={timestamp: [1e18, 2e18]}"),
        None,
        None,
        r"leaves no test case",
    ),
    "a split that there is not": (
        (*GRU, "--eval_args.split={LO: 1}"),
        None,
        None,
        r"eval_args.split: expected one of LS, RS, temporal, timestamp",
    ),
    "more negatives than there are items": (
        (*GRU, "--eval_args.mode=uni25"),
        None,
        None,
        r"uni25: user u\d+ leaves only \d+ items .*smaller uniK",
    ),
    "a model that the harness does not run": (
        ("--model=CFKG", "--beside=[Pop]"),
        None,
        None,
        r"CFKG learns from a knowledge graph .*such models are not run by this harness",
    ),
    "fine-tuning from nothing": (
        ("--model=S3Rec", "--beside=[]", "--item_attribute=categories", "--stages=[finetune]"),
        None,
        None,
        r"expected --init_from=RUN",
    ),
    "a backbone that is nowhere": (
        ("--model=CALRec", "--beside=[Pop]", "--backbone=./nowhere"),
        None,
        None,
        r"backbone './nowhere' is not a model folder",
    ),
    "a size of backbone that there is not": (
        ("--model=CALRec", "--beside=[Pop]", "--backbone=scratch:huge"),
        None,
        None,
        r"expected scratch:tiny or ",
    ),
    "a backbone of no run": (
        ("--model=CALRec", "--beside=[Pop]", "--backbone=run:nobody"),
        None,
        None,
        r"run 'nobody': expected a run folder or id",
    ),
    "labels that are not there": (
        ("--model=FM", "--beside=[Pop]"),
        None,
        None,
        r"FM learns labels, .* make one by --threshold.rating=4 and --load_col.inter=",
    ),
    "a training loop of its own": (
        ("--model=NCL", "--beside=[Pop]"),
        None,
        None,
        r"NCL: NCLTrainer has a training loop of its own",
    ),
    "a size that RecBole refuses": (
        ("--model=SASRec", "--beside=[]", "--n_heads=7"),
        None,
        None,
        r"RecBole cannot build SASRec and its data from these settings: ValueError: .*hidden size",
    ),
    "a user who has met everything": (
        ("--model=BPR", "--beside=[Pop]"),
        "inter",
        lambda text: text + "".join(f"u1\ti{item}\t3\t{2e9 + item}\n" for item in range(30)),
        r"BPR draws negatives, but user u1 has met all 30 items",
    ),
    "a folder that is a file": (
        (*POP_LIR, "--checkpoint_dir=dataset/tiny/tiny.inter"),
        None,
        None,
        r"checkpoint_dir .*: expected a folder to write to, but .* is a file",
    ),
}


ALIKE = {
    "--Pop.mask_history=true": (
        r"the models of a table are measured alike: evaluation.mask_history is True for Pop "
        r"and False for LIR"
    ),
    "--Pop.eval_args.mode=uni5": r"measured alike: split.mode.* is .* for Pop and .* for LIR",
    "--LIR.catalogue=all": r"measured alike: fingerprint is",
}


@pytest.mark.parametrize("own", ALIKE)
def test_models_of_one_table_are_measured_alike(own, tmp_path, refused):
    """The line appears before any is trained."""
    write_shop(tmp_path)
    edit(tmp_path, "item", lambda text: text + "i99\tnever bought\tbowl\n")
    assert re.search(ALIKE[own], refused("compare", "--models=Pop,LIR", "--dataset=tiny", own))


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be(case, tmp_path, refused):
    """The line appears before the first model is trained, including those beside it."""
    args, suffix, change, said = DATA[case]
    write_shop(tmp_path)
    if suffix:
        before = (tmp_path / "dataset" / "tiny" / f"tiny.{suffix}").read_text()
        edit(tmp_path, suffix, change)
        assert (tmp_path / "dataset" / "tiny" / f"tiny.{suffix}").read_text() != before
    assert re.search(said, refused(*args, "--dataset=tiny"))


CHECKPOINTS = {
    "evaluate --checkpoint=GRU --dataset=other": (
        r"GRU4Rec-tiny-\w+ was trained on tiny .* knows items by number and cannot change data"
    ),
    "evaluate --checkpoint=GRU --hidden_size=32": (
        r"hidden_size: GRU4Rec-tiny-\w+ is trained already and takes settings of data, "
        r"evaluation"
    ),
    "evaluate --checkpoint=LIR --epochs=3": r"epochs: LIR-tiny-\w+ is trained already",
    "evaluate --checkpoint=GRU --eval_args.split={RS:[2,2,6]}": (
        r"GRU4Rec-tiny-\w+ was trained on \d+ of the \d+ test targets, by the split "
        r".*valid_and_test"
    ),
    "evaluate --checkpoint=junk --mask_history=true": (
        r"junk/model.safetensors is damaged .*; remove .*junk and run again"
    ),
    "--resume=unfinished --hidden_size=32": (
        r"--resume=unfinished goes on with a run as it is, but hidden_size would make it "
        r"another one; start GRU4Rec-tiny-"
    ),
    "--resume=damaged": r"damaged/run.json: expected the record of a run",
    "--resume=half": r"half/run.json: expected the record of a run",
    "compare --runs=GRU,GRU": r"--runs: a run is named twice",
    "compare --runs=GRU,LIR --topk=[1]": r"--runs compares runs as they are: leave out --topk",
    "compare --runs=GRU,LIR --columns=ndcg@10,recall@7": (
        r"--columns: \S+ has no recall@7, but .*recall@10"
    ),
    "compare --models=Pop,LIR --dataset=tiny --columns=recall@10": r"--columns .* goes with --runs",
    "evaluate --checkpoint=GRU --model=SASRec": r"model: a run keeps its own, which is GRU4Rec",
    "evaluate --checkpoint=GRU --eval_args.mode=uni25": r"uni25: user u\d+ leaves only",
    "evaluate --checkpoint=GRU4Rec": (
        r"run 'GRU4Rec': expected .*, found GRU4Rec-tiny-\w+, GRU4Rec-tiny-"
    ),
    "evaluate --checkpoint=damaged": (
        r"damaged/run.json: expected the record of a run, found another or a damaged file"
    ),
    "evaluate --checkpoint=foreign": r"foreign/run.json: expected the record of a run",
    "evaluate --checkpoint=unfinished": (
        r"unfinished is not a finished run; go on with it by --resume=unfinished"
    ),
    "recommend --checkpoint=unfinished --user=u1": r"unfinished is not a finished run",
    "recommend --checkpoint=GRU --user=nobody": (
        r"unknown user 'nobody': the data has 40 users such as u0"
    ),
    "recommend --checkpoint=GRU --history=zebra": (
        r"expected an item's title or id, found 'zebra', of which no item has half of the words"
    ),
    "recommend --checkpoint=GRU --history=;": r"--history is empty",
    "recommend --checkpoint=GRU": r"expected either --user=ID or --history",
    "recommend --checkpoint=GRU --user=u1 --k=few": (
        r"--k: expected a positive whole number, found 'few'"
    ),
    "recommend --checkpoint=GRU --user=u1 --k=0": r"--k: expected a positive whole number",
    "recommend --checkpoint=GRU --user=u1 --dataset=other": (
        r"dataset: a run keeps its own, which is tiny"
    ),
    "recommend --checkpoint=Pop --history=i1": r"Pop knows users by number: give --user",
}


@pytest.fixture(scope="module")
def trained(shop, tmp_path_factory):
    """Copy the second folder, and add invalid runs."""
    folder = tmp_path_factory.mktemp("trained") / "copy"
    shutil.copytree(shop.second, folder)
    saved = folder / "saved"
    record = json.loads((shop.gru / "run.json").read_text())
    texts = {
        "damaged": '{"status": "fin',
        "foreign": '{"epochs": 3}',
        "unfinished": json.dumps(record | {"status": "running"}),
        "junk": json.dumps(record),
        "half": json.dumps(record | {"settings": {}}),
    }
    for name, text in texts.items():
        (saved / name).mkdir()
        (saved / name / "run.json").write_text(text)
    (saved / "junk" / "model.safetensors").write_bytes(b"no weights")
    return folder


@pytest.mark.parametrize("line", CHECKPOINTS)
def test_checkpoints_that_cannot_be(line, shop, trained, refused):
    saved = trained / "saved"
    names = {model: min(saved.glob(f"{model}-*")).name for model in ("Pop", "LIR")}
    names |= {"GRU": shop.gru.name}
    args = [
        re.sub(r"(?<=[=,])(GRU|LIR|Pop)\b", lambda found: names[found[0]], arg)
        for arg in line.split()
    ]
    assert re.search(CHECKPOINTS[line], refused(*args, folder=trained))


def test_a_run_starts_from_another_ones_weights(shop, trained, refused, monkeypatch, capfd):
    ask = [
        "--model=GRU4Rec",
        "--dataset=tiny",
        "--beside=[]",
        "--hidden_size=16",
        "--epochs=0",
        "--show_progress=false",
    ]
    lir = sorted(path.name for path in (trained / "saved").glob("LIR-*"))[0]
    assert f"{lir} is a checkpoint of another model" in refused(
        *ask, f"--init_from={lir}", folder=trained
    )
    monkeypatch.chdir(trained)
    results = []
    for more in ([], [f"--init_from={shop.gru.name}"]):
        assert main([*ask, *more]) == 0
        results.append(rows_of(trained)[-1]["test"])
    assert (
        results[1] == json.loads((shop.gru / "run.json").read_text())["row"]["test"] != results[0]
    )


def test_runs_that_were_measured_otherwise_do_not_share_a_table(shop, trained, refused):
    saved = trained / "saved"
    lir, pop = (min(saved.glob(f"{model}-*")).name for model in ("LIR", "Pop"))
    uni = next(path for path in (trained / "saved" / shop.gru.name).glob("evaluate-*"))
    assert re.search(r"split.mode", refused("compare", f"--runs={lir},{uni}", folder=trained))


def test_a_model_beside_it_that_cannot_run_is_left_out(tmp_path, monkeypatch, capfd):
    """Nobody asked for LIR, and the data has no text."""
    write_shop(tmp_path)
    (tmp_path / "dataset" / "tiny" / "tiny.item").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["--model=GRU4Rec", "--dataset=tiny", "--epochs=0", "--show_progress=false"]) == 0
    said = capfd.readouterr()
    assert "left out beside it, LIR: dataset tiny has no text" in said.err and [
        row["model"] for row in rows_of(tmp_path)
    ] == ["Pop", "GRU4Rec"]


@pytest.mark.parametrize(
    "args",
    [
        ("--model=nobody", "--dataset=tiny"),
        pytest.param(
            ("--model=LIR", "--dataset=tiny", "--eval_args.mode=uni999"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_mistake_in_a_process_of_its_own(args, bare):
    """Exit code and streams are those that a shell sees, with the libraries' own warnings.

    They are the same before and after torch is loaded.
    """
    before = there(bare)
    done = process(bare, *args)
    assert done.returncode == 2 and done.stdout == "" and there(bare) == before
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
