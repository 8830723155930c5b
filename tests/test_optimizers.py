"""Muon for matrices, AdamW for embeddings and the rest, as one optimizer."""

import pytest
import torch
import transformers
from worlds import needs_muon

from recbole_llm import optimizers
from recbole_llm.errors import UserError

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


@needs_muon
@pytest.mark.parametrize(
    ("kind", "matrices", "tables"), [("tied", 14, 1), ("untied", 14, 2), ("gpt2", 8, 2)]
)
def test_every_weight_has_one_optimizer_and_no_table_is_orthogonalised(kind, matrices, tables):
    net = torch.nn.ModuleDict({"backbone": model(kind), "norm": torch.nn.LayerNorm(WIDTH)})
    net["norm"].weight.requires_grad_(False)
    muon, rest = optimizers.build(net, "muon", 0.01, 0.0).param_groups
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    moved, others = (
        [names[id(parameter)] for parameter in group["params"]] for group in (muon, rest)
    )
    assert sorted([*moved, *others]) == sorted(
        name for name, parameter in net.named_parameters() if parameter.requires_grad
    )
    assert len(moved) == matrices and all("layers." in name or ".h." in name for name in moved)
    assert len([name for name in others if net.get_parameter(name).ndim == 2]) == tables


@needs_muon
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


def test_an_old_torch_is_told(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(
        UserError,
        match=r"learner: muon needs torch 2\.9 or later, found .*; update torch, or take learner: adam",
    ):
        optimizers.check("muon")
    optimizers.check("adam")
    assert isinstance(optimizers.build(model("tied"), "adam", 0.01, 0.0), torch.optim.AdamW)
