"""Settings that several models share, to be included in a model's own settings."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .schema import Group, ModelSettings, Text, Trait

AtLeastOne = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
PassTokens = int | Literal["auto"]
Seed = Annotated[int, Field(ge=0, le=4294967295)]


class ClipGradNorm(Group):
    """Arguments of `torch.nn.utils.clip_grad_norm_`."""

    max_norm: float = Field(default=1.0, gt=0, description="Largest norm of a step's gradient.")
    norm_type: float = Field(default=2.0, gt=0, description="Which norm: 2 is the Euclidean one.")


class NegativeSampling(Group):
    """How RecBole samples negatives in training."""

    distribution: Literal["uniform", "popularity"] | None = Field(
        default="uniform", description="How likely an item is sampled; null: no item is sampled."
    )
    sample_num: int = Field(default=1, ge=1, description="Negatives of each positive.")
    alpha: float = Field(default=1.0, description="Exponent of the popularity.")
    dynamic: bool = Field(
        default=False, description="The model chooses among candidates by its scores."
    )
    candidate_num: int = Field(default=0, ge=0, description="How many candidates it chooses among.")


class EvaluationArguments(Group):
    """RecBole's `eval_args`, with what this harness adds."""

    split: dict[str, Any] = Field(
        default={"LS": "valid_and_test"},
        description="LS, RS: [a, b, c], temporal: [a, b, c] or timestamp: [t1, t2].",
    )
    part: Literal["pretrain", "continue", "both"] = Field(
        default="pretrain", description="Whose cases train and validate in a temporal split."
    )
    order: str = Field(default="TO", description="Always by time.")
    group_by: str = Field(default="user", description="Always by user.")
    mode: str | dict[str, Any] = Field(
        default="full", description="full: the whole catalogue; uniK: K negatives per case."
    )


class RecBoleTrainingSettings(ModelSettings):
    """What RecBole's trainer reads, and ours."""

    epochs: int = Field(300, ge=0, description="Passes over the training cases.")
    train_batch_size: int = Field(2048, ge=1, description="Training cases per step.")
    eval_step: int = Field(1, ge=0, description="Epochs between validations; 0: none.")
    learner: str = Field(
        "adam", description="adam, adamw, sgd, adagrad or rmsprop; text models have their own."
    )
    learning_rate: float = Field(0.001, gt=0, description="Size of a step.")
    weight_decay: float = Field(0.0, ge=0, description="How strongly weights are drawn to zero.")
    clip_grad_norm: ClipGradNorm | None = Field(
        None,
        description="{max_norm: 1.0, norm_type: 2.0} clips the norm of the gradient; null: no "
        "clipping.",
    )
    train_neg_sample_args: NegativeSampling | None = Field(
        NegativeSampling(), description="How negatives are sampled; null: there are none."
    )


class TrainingSettings(RecBoleTrainingSettings):
    """What our trainer reads."""

    section: ClassVar[str] = "Training"
    epochs: int = Field(20, description="Passes over the training examples.")
    train_batch_size: int = Field(128, description="Training examples per step.")
    pass_tokens: PassTokens = Field(
        65536,
        ge=1,
        description="Most tokens per forward pass, or another cost of examples; a step is several "
        "passes if need be. auto, or more than fits: as many as fit in memory.",
    )
    learner: str = Field(
        "adam", description="adam: AdamW. muon (torch 2.9 or later): orthogonalised steps."
    )
    learning_rate: float = Field(0.001, description="Peak of the learning rate.")
    weight_decay: float = Field(0.0, description="Of AdamW.")
    warmup: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of all steps with a rising learning rate; `schedule` says how it goes "
        "on.",
    )
    schedule: Annotated[Literal["cosine", "linear", "constant"], Trait.CAME_LATER] = Field(
        "cosine",
        description="How the learning rate goes on: down to a tenth, down to zero, or as it is.",
    )
    max_steps: Annotated[int | None, Trait.CAME_LATER] = Field(
        None, ge=1, description="Most steps, after which training ends, within `epochs`."
    )
    clip_grad_norm: ClipGradNorm | None = None
    train_neg_sample_args: NegativeSampling | None = Field(None, description="No negatives.")
    eval_step: int = 1
    valid_every: Annotated[int | None, Trait.CAME_LATER] = Field(
        None, ge=1, description="Steps between validations, in place of epochs (eval_step)."
    )
    keep_checkpoints: Annotated[list[AtLeastOne] | None, Trait.CAME_LATER] = Field(
        None,
        description="Steps whose weights are kept beside the best ones, as runs RUN@STEP that "
        "init_from and evaluate take.",
    )
    valid_users: int = Field(
        0,
        ge=0,
        description="Most validation cases used for choosing a checkpoint, drawn once; 0: all.",
    )


class UntrainedSettings(ModelSettings):
    """Of a model that learns nothing."""

    epochs: int = Field(0, ge=0, description="Nothing is trained.")
    train_neg_sample_args: NegativeSampling | None = Field(None, description="No negatives.")


class TextEncoderSettings(ModelSettings):
    """Of a model that reads frozen text vectors."""

    text_encoder: str = Field(
        "minilm", description="Frozen sentence encoder: hub id, folder, minilm or run:<id>."
    )


class BackboneSettings(ModelSettings):
    """Of a model around a language model."""

    section: ClassVar[str] = "Language model"
    backbone: str = Field(
        "scratch:tiny", description="Hub id, folder, run:<id>, or scratch:tiny|small|base."
    )
    scratch_vocabulary: int = Field(
        4096, ge=1, description="Tokens of a scratch backbone's tokenizer."
    )
    max_length: int = Field(
        1024, ge=1, description="Tokens of history and target; the oldest items are left out first."
    )
    checkpoint: Annotated[Literal["auto", "true", "false"], Trait.OUTSIDE_IDENTITY] = Field(
        "auto",
        description="Activation checkpointing: layers are computed again in the backward pass, "
        "which takes far less memory, and a third longer in full or half as long again by LoRA; "
        "auto: where passes would not fit otherwise.",
    )


class LoraSettings(ModelSettings):
    """Of adapters on a language model."""

    section: ClassVar[str] = "LoRA"
    adapter: Literal["none", "lora"] = Field(
        "none",
        description="none: all weights are trained; lora: low-rank updates of every linear layer.",
    )
    lora_rank: int = Field(8, ge=1, description="Rank of the updates.")
    lora_alpha: float = Field(16, gt=0, description="The updates are scaled by alpha / rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Of the updates' input.")
    weights: Annotated[Literal["auto", "float32", "bfloat16"], Trait.CAME_LATER] = Field(
        "auto",
        description="Of frozen weights under lora; auto: bfloat16 where precision is bf16 and the "
        "device computes it.",
    )


class QuantizedLoraSettings(LoraSettings):
    """Of adapters on a language model whose own weights may be quantized."""

    section: ClassVar[str] = "LoRA"
    quantize: Literal["none", "8bit", "4bit"] = Field(
        "none", description="Of frozen weights under lora (QLoRA); needs bitsandbytes."
    )
    lora_dropout: float = 0.05


class MultiDatasetSettings(ModelSettings):
    """Of a model that trains on several datasets together."""

    section: ClassVar[str] = "Several datasets"
    datasets: list[str] | None = Field(
        None,
        description="Datasets to train on together, by their training parts, each drawn in "
        "proportion to users^mixture_exponent.",
    )
    mixture_exponent: float = Field(
        1.0, ge=0, description="1: each user once; 0: as often from each dataset (datasets)."
    )
    whole: list[str] | None = Field(
        None,
        description="Those of them that train by all of their events, because nothing is ever "
        "tested on them.",
    )
    select_on: str | None = Field(
        None,
        description="Which of them chooses the checkpoint and is tested on; the run's own where "
        "not set.",
    )


class HistorySettings(ModelSettings):
    """Of a model that reads the newest items of a history."""

    max_items: int = Field(50, ge=1, description="Newest items of a history that are read.")


class TargetSettings(ModelSettings):
    """Of a model that may learn from one case of each user."""

    targets: Literal["one", "all"] = Field(
        "all",
        description="One training case of each user, drawn anew in each epoch as in the paper, or "
        "all.",
    )


class NegativesSettings(ModelSettings):
    """Of a model that learns from the negatives of its step."""

    contrast_batch: Annotated[int | None, Trait.CAME_LATER] = Field(
        None,
        ge=2,
        description="Most examples that are negatives of each other; null: all of a step "
        "(train_batch_size).",
    )


class ContrastSettings(NegativesSettings):
    """Of a model with a contrastive loss."""

    contrast_temperature: float = Field(0.05, gt=0, description="Of the contrastive terms.")


class RankingSettings(ModelSettings):
    """What is measured of the ranking."""

    metrics: list[str] = Field(
        ["Recall", "NDCG", "MRR"],
        description="Recall, Hit, NDCG, MRR, Precision, MAP at topk; MRR without a cut-off is "
        "always there.",
    )
    topk: list[AtLeastOne] = Field([1, 5, 10, 20], description="Cut-offs.")


class Bm25Settings(ModelSettings):
    """Of a search by words (BM25)."""

    bm25_k1: float = Field(1.5, ge=0, description="Saturation of repeated words.")
    bm25_b: float = Field(0.75, ge=0, le=1, description="Weight of a text's length.")


class RerankingSettings(ModelSettings):
    """Of a model that can rank the lists of another one again."""

    rerank_from: str | None = Field(
        None,
        description="A run whose stored lists are ranked again; an item outside its case's list "
        "stays below it.",
    )


class Template(Group):
    """The sentences around the items of a history."""

    is_complete: ClassVar[bool] = True
    head: Text = "This is the summary of a user's purchase history."
    first: Text = "The first item bought is as follows."
    next: Text = "\n\nThe next item bought is as follows."
    target: Text = "\n\nThe next item bought is as follows."


class GenerationSettings(RerankingSettings, Bm25Settings):
    """Of a model that writes texts and finds the items that they mean."""

    section: ClassVar[str] = "Writing texts and matching items"
    template: Template = Field(
        Template(),
        description="The sentences around the items. Behind each item stands the end token of the "
        "tokenizer, which is what ends writing.",
    )
    decoding: Literal["sample", "constrained"] = Field(
        "sample",
        description="sample: texts are drawn freely; constrained: a beam search writes items of "
        "the catalogue alone.",
    )
    beams: int = Field(32, ge=1, description="Items that a constrained search reaches.")
    match: Literal["bm25", "hierarchical"] = Field(
        "bm25",
        description="How texts find items: quasi-round-robin BM25, or agreement on the most "
        "attributes.",
    )
    blend: float = Field(
        0,
        description="Weight of cos(history, item), added to an item's score (to its "
        "log-probability where a beam reached it).",
    )
    samples: int = Field(32, ge=1, description="Texts drawn per user at test time.")
    valid_samples: int = Field(8, ge=1, description="The same while training.")
    temperature: float = Field(0.5, ge=0, description="Of the sampling.")
    max_new_tokens: int = Field(80, ge=1, description="Longest generated item.")
    texts_kept: int = Field(10, ge=1, description="Most probable distinct texts that are matched.")
    epsilon: float = Field(
        0.0002, ge=0, description="Weight of a text's log-probability in the round robin."
    )
    generate_rows: int = Field(1024, ge=1, description="Samples decoded at once.")


class JudgingSettings(TargetSettings, RerankingSettings, RankingSettings):
    """Of a model that answers Yes or No to each candidate."""

    section: ClassVar[str] = "Judging candidates"
    domain: Annotated[str, Trait.ABOUT_DATA] = Field(
        "shopping", description="Wording of the prompts: a file of properties/domain."
    )
    recent_items: int = Field(
        50, ge=0, description="Newest items of a history that the prompt lists."
    )
    loss: Literal["answer", "prompt"] = Field(
        "answer",
        description="What is learned: the answer alone, or every token of the prompt too.",
    )
    score: Literal["logits", "probabilities"] = Field(
        "logits",
        description="Softmax of Yes and No by their logits, or of their probabilities, as the "
        "paper's formula has it.",
    )
    targets: Literal["one", "all"] = Field(
        "all", description="Training cases of each user: the last, or all."
    )
    negatives: int = Field(
        1, ge=1, description="Items per case that are no targets, drawn anew in each epoch."
    )
    eval_args: EvaluationArguments = Field(
        EvaluationArguments(mode="uni20"),
        description="One target among twenty other items; the whole catalogue: "
        "--eval_args.mode=full --rerank_from=RUN.",
    )
    rerank_from: str | None = Field(
        None,
        description="A run whose stored lists are judged, where the whole catalogue is ranked.",
    )
    rerank_items: int = Field(
        20,
        ge=1,
        description="How many of such a list are judged; the others stay below them, in the "
        "list's order.",
    )
    metrics: list[str] = ["Recall", "MRR", "NDCG"]
    topk: list[AtLeastOne] = [1, 3, 5, 10]


class JudgeTrainingSettings(TrainingSettings):
    """How a model that judges candidates is trained."""

    epochs: int = 10
    train_batch_size: int = Field(64, description="Cases per step.")
    pass_tokens: PassTokens = 8192
    weight_decay: float = 0.0005
    clip_grad_norm: ClipGradNorm | None = ClipGradNorm(max_norm=1.0)
    train_neg_sample_args: NegativeSampling | None = Field(
        None, description="Negatives are `negatives`."
    )
    valid_users: int = 2000


class SummarySettings(ModelSettings):
    """Of a model that reads summaries of long histories."""

    section: ClassVar[str] = "Summaries"
    summary: Literal["hierarchical", "recurrent", "none"] = Field(
        "hierarchical",
        description="How a history is condensed; none: the prompt says NULL in its place.",
    )
    summary_items: int = Field(
        1000,
        ge=1,
        description="Newest items of a history that are condensed, to whole blocks: a bound on "
        "what the longest histories cost.",
    )
    block_size: int = Field(5, ge=1, description="Items that are condensed at once.")
    fan_in: int = Field(
        5, ge=2, description="Summaries that a layer of the hierarchy condenses into one."
    )
    summarizer: str = Field(
        "extractive",
        description="extractive (no language model), a hub id or folder of an instruct model, "
        "run:<id>, or a server's URL that ends in /v1.",
    )
    summarizer_model: str | None = Field(None, description="The server's name of its model.")
    summarizer_quantize: Literal["none", "8bit", "4bit"] = Field(
        "none", description="Of a local summarizer's weights; needs bitsandbytes."
    )
    summarizer_length: int = Field(
        2048, ge=64, description="Tokens of a summarizer's prompt and its text together."
    )
    summary_tokens: int = Field(
        256,
        ge=8,
        description="Most tokens of a summary by a language model; one that does not end by then, "
        "is empty or is refused is asked for once more, then replaced by an extract.",
    )
    summarizer_temperature: float = Field(0.0, ge=0, description="0: greedy.")
    summarizer_parallel: Annotated[int, Trait.OUTSIDE_IDENTITY] = Field(
        16, ge=1, description="Texts that are written at once."
    )
    summarizer_timeout: Annotated[float, Trait.OUTSIDE_IDENTITY] = Field(
        600, gt=0, description="Seconds that a server may take for one answer."
    )
    summarizer_retries: Annotated[int, Trait.OUTSIDE_IDENTITY] = Field(
        8,
        ge=0,
        description="Most further requests for a text to a server that is busy or fails.",
    )
    summarizer_extra: dict[str, Any] | None = Field(
        None,
        description="Fields of the body of each request to a server, such as "
        "{chat_template_kwargs: {enable_thinking: false}}; null leaves one out, as {seed: null}.",
    )
    summaries: Literal["stored", "retry"] = Field(
        "stored",
        description="retry: texts that an earlier command had to replace by extracts are asked "
        "for again.",
    )
