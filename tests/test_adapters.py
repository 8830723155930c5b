"""LoRA trains and stores adapters alone, merged weights equal live ones, and runs build on runs."""

import json

import pytest
import torch
from worlds import prepared, settings_for, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.language.backbones.sources import load_folder
from recbole_llm.runs.commands import evaluate_run, run_settings


@pytest.fixture(scope="module")
def trained(make_once):
    """Train a run in full, a LoRA run from it, and a LoRA run from that one."""
    lora = {"adapter": "lora", "lora_dropout": 0.1}

    def train(folder):
        write_cycle(folder)
        runs = [run_settings(settings_for("CALRec", folder))]
        for _ in range(2):
            start = runs[-1].folder.name
            runs.append(run_settings(settings_for("CALRec", folder, init_from=start, **lora)))
        return folder, runs

    return make_once("adapters", train)


def logits(bundle):
    ids = torch.arange(2, 22)[None]
    with torch.no_grad():
        return bundle.model.eval()(input_ids=ids).logits


def test_adapters_alone_are_stored_and_name_their_base(trained):
    folder, (full, first, second) = trained
    files = {path.name for path in (first.folder / "backbone").iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    bases = [
        json.loads((run.folder / "backbone" / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ]
        for run in (first, second)
    ]
    assert bases == [f"run:{full.folder.name}", f"run:{first.folder.name}"]


def test_merged_equals_live(trained):
    _, runs = trained
    outputs = []
    for run in runs[1:]:
        live = load_folder(str(run.folder / "backbone"))
        expected = logits(live)
        merged = live.merged()
        assert torch.allclose(logits(merged), expected, atol=1e-4)
        assert not [name for name, _ in merged.model.named_parameters() if "lora" in name]
        assert all(parameter.requires_grad for parameter in merged.model.parameters())
        outputs.append(expected)
    base = logits(load_folder(str(runs[0].folder / "backbone")))
    assert not torch.allclose(outputs[0], base, atol=1e-3) and not torch.allclose(
        outputs[1], outputs[0], atol=1e-3
    )


def test_peft_reads_them(trained):
    from peft import PeftModel

    _, (full, first, _) = trained
    theirs = PeftModel.from_pretrained(
        load_folder(str(full.folder / "backbone")).model, str(first.folder / "backbone")
    ).eval()
    with torch.no_grad():
        output = theirs(input_ids=torch.arange(2, 22)[None]).logits
    assert torch.allclose(output, logits(load_folder(str(first.folder / "backbone"))), atol=1e-5)


def test_only_adapters_learn(trained):
    folder, (full, first, _) = trained
    _, model, trainer, _ = prepared("CALRec", folder, adapter="lora", init_from=full.folder.name)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names and all("lora_" in name for name in names)
    weights = load_folder(str(full.folder / "backbone")).model.state_dict()
    kept = load_folder(str(first.folder / "backbone")).model.state_dict()
    for name, value in weights.items():
        other = kept[name if name in kept else name.replace(".weight", ".base_layer.weight")]
        assert torch.equal(value, other), name


def test_a_stored_run_gives_its_numbers_again(trained):
    folder, (_, first, second) = trained
    for run in (first, second):
        settings = json.loads((run.folder / "run.json").read_text())["settings"]
        again = evaluate_run(run.folder, settings | {"metrics": ["NDCG"], "topk": [10]})
        assert again.folder != run.folder and again.row["test"]["ndcg@10"] == pytest.approx(
            run.row["test"]["ndcg@10"]
        )


def test_lora_on_random_weights_is_refused(tmp_path):
    write_cycle(tmp_path)
    message = "adapter: lora needs trained weights, found backbone scratch:nano; give --init_from="
    with pytest.raises(UserError, match=message):
        run_settings(settings_for("CALRec", tmp_path, adapter="lora"))
    assert not (tmp_path / "saved").exists()


def test_a_backbone_of_a_lora_run_is_merged(trained):
    folder, (_, first, _) = trained
    _, model, _, _ = prepared("CALRec", folder, backbone=f"run:{first.folder.name}")
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert torch.allclose(
        logits(model.bundle), logits(load_folder(str(first.folder / "backbone"))), atol=1e-4
    )
