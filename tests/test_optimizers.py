"""Muon for matrices, AdamW for embeddings and the rest, as one optimizer."""

import pytest
import torch
import transformers

from recbole_llm.language.backbones.precision import in_software
from recbole_llm.training import optimizers

WIDTH = 32


def model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=50, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64
            )
        )
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "tie_word_embeddings": kind == "tied",
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))


@pytest.mark.parametrize(
    ("kind", "matrices", "tables"), [("tied", 14, 1), ("untied", 14, 2), ("gpt2", 8, 2)]
)
def test_every_weight_has_one_optimizer_and_no_table_is_orthogonalised(kind, matrices, tables):
    net = torch.nn.ModuleDict({"backbone": model(kind), "norm": torch.nn.LayerNorm(WIDTH)})
    net["norm"].weight.requires_grad_(False)
    muon, rest = optimizers.build(net, "muon", 0.01, 0.0).param_groups
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    moved = [names[id(parameter)] for parameter in muon["params"]]
    others = [names[id(parameter)] for parameter in rest["params"]]
    assert sorted([*moved, *others]) == sorted(
        name for name, parameter in net.named_parameters() if parameter.requires_grad
    )
    assert len(moved) == matrices and all("layers." in name or ".h." in name for name in moved)
    assert len([name for name in others if net.get_parameter(name).ndim == 2]) == tables


def test_a_step_turns_matrices_evenly_and_keeps_adamws_size():
    net = model("tied")
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    optimizer = optimizers.build(net, "muon", 0.01, 0.0)
    net(input_ids=torch.arange(40)[None], labels=torch.arange(40)[None]).loss.backward()
    optimizer.step()
    for name, value in net.named_parameters():
        step = value.detach() - before[name]
        if "proj" in name:
            uneven, even = (torch.linalg.svdvals(matrix) for matrix in (value.grad, step))
            assert uneven.median() < 0.4 * uneven.max() and even.median() > 0.6 * even.max(), name
            assert 0.1 < step.square().mean().sqrt() / 0.01 < 0.3, name
        elif "embed" in name:
            assert step[:40].abs().max() == pytest.approx(0.01, rel=1e-2)  # AdamW's first step


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch's came with torch 2.9")
def test_steps_in_bfloat16_are_torchs():
    """Tall, wide and square matrices, one of them without a gradient at first."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in [(6, 20), (20, 6), (8, 8)]]
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    mine = optimizers.Muon(ours, 0.01, 0.5, torch.bfloat16)
    reference = torch.optim.Muon(theirs, 0.01, 0.5, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for weight, other in zip(ours[step == 0 :], theirs[step == 0 :], strict=True):
            weight.grad = torch.randn(weight.shape)
            other.grad = weight.grad.clone()
        mine.step()
        reference.step()
    for weight, other in zip(ours, theirs, strict=True):
        assert torch.equal(weight, other)


@pytest.mark.parametrize("shape", [(5, 30), (30, 5), (16, 16)])
def test_singular_values_move_near_one_and_singular_vectors_stay(shape):
    torch.manual_seed(1)
    matrix = torch.randn(shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.T @ optimizers.orthogonal(matrix, torch.float64) @ right.T
    kept = values > 0.05 * values.norm()  # smaller ones need more steps
    assert (turned - torch.diag(turned.diag())).abs().max() < 1e-9
    assert ((turned.diag() > 0.6) & (turned.diag() < 1.25))[kept].all()


def test_only_bf16_runs_orthogonalise_in_bfloat16():
    kinds = {"fp32": torch.float32, "fp16": torch.float32, "bf16": torch.bfloat16}
    for precision, dtype in kinds.items():
        muon = optimizers.build(model("tied"), "muon", 0.01, 0.0, precision).parts[0]
        assert muon.dtype == dtype, precision


@pytest.mark.parametrize(
    ("device", "units", "slow"),
    [
        ("cpu", {"architecture": "x86_64", "avx512_bf16": False}, {"bf16", "fp16"}),
        ("cpu", {"architecture": "x86_64", "avx512_bf16": True}, {"fp16"}),
        ("cpu", {"architecture": "x86_64", "amx_bf16": True, "amx_fp16": True}, set()),
        ("cpu", {"architecture": "aarch64"}, set()),
        ("cpu", {}, set()),
        ("cuda", {"architecture": "x86_64"}, set()),
    ],
)
def test_a_precision_that_the_cpu_has_no_instructions_for_is_known(
    monkeypatch, device, units, slow
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    found = {kind for kind in ("fp32", "bf16", "fp16") if in_software(device, kind)}
    assert found == slow


def test_an_older_torch_says_nothing_of_its_cpu(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not in_software("cpu", "bf16")
