"""What a run is refused for before anything is trained, one function a rule."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.cases.candidates import draw_candidates
from ..errors import UserError
from ..settings import layers, run_record, stock
from . import leakage
from .spec import RunSpec, Settings, inference_settings


def check(spec: RunSpec, first: bool = True) -> None:
    """Refuse what would fail only later, after another model or an epoch has been trained.

    Nothing is written.

    Parameters
    ----------
    spec : RunSpec
        The run.
    first : bool
        Whether no stage comes before it, which it starts from.

    Raises
    ------
    UserError
        If it cannot work.
    """
    if first:
        check_start(spec)
    check_split_and_texts(spec)
    check_text_encoder(spec)
    if spec.model.is_text:
        model: Any = spec.model.load()
        model.check(spec.config, spec.inputs)
    else:
        check_stock_model(spec)
    check_candidates(spec)
    check_stored_lists(spec)
    check_unseen(spec, leakage.starts(spec.settings, spec.saved), ("test", "valid"))
    if first:
        check_language_models(spec)


def check_start(spec: RunSpec) -> None:
    """Refuse to fine-tune random weights where the model's stages begin with pre-training."""
    if spec.settings.get("train_stage") == "finetune" and not spec.start:
        raise UserError(
            f"{spec.model.name}, finetune: expected --init_from=RUN, the pre-trained run it "
            "starts from; or leave out --stages"
        )


def check_split_and_texts(spec: RunSpec) -> None:
    """Refuse a start with damaged files, a split without cases, and items without texts."""
    from ..storage.readback import check_files

    if spec.start and not spec.restored:
        check_files(spec.start)
    _ = spec.inputs  # which makes the split and reads the texts


def check_text_encoder(spec: RunSpec) -> None:
    """Refuse a text encoder that cannot be used as it is."""
    if "text_encoder" in spec.language_models:
        from ..language.vectors import check_frozen

        trusted = bool(spec.settings["trust_remote_code"])
        check_frozen(spec.settings["text_encoder"], spec.saved, trusted)


def check_stock_model(spec: RunSpec) -> None:
    """Refuse data and settings that a model of RecBole's kind cannot train on."""
    from ..data.recbole.datasets import dataset_class
    from ..training.loop import trainer_class

    name, config, interactions = spec.model.name, spec.config, spec.interactions
    dataset_class(name, config["MODEL_TYPE"])
    trainer_class(name, config["MODEL_TYPE"])
    stock.check_data(config, interactions, spec.model.family)
    label = config["LABEL_FIELD"]
    has_label = label in interactions.columns or config["threshold"]
    if spec.model.family == "context_aware" and not has_label:
        raise UserError(
            f"{name} learns labels, and the data has no column {label}: make one by "
            f"--threshold.{config['RATING_FIELD']}=4 and "
            f"--load_col.inter='[{config['USER_ID_FIELD']}, {config['ITEM_ID_FIELD']}, "
            f"{config['RATING_FIELD']}, {config['TIME_FIELD']}]'"
        )
    distribution = (config["train_neg_sample_args"] or {}).get("distribution", "none")
    if distribution != "none" and interactions.met.max() == len(interactions.items):
        user = interactions.users[interactions.met.argmax()]
        raise UserError(
            f"{name} draws negatives, but user {user} has met all {len(interactions.items)} "
            "items; filter users by user_inter_num_interval"
        )


def check_candidates(spec: RunSpec) -> None:
    """Refuse more negatives than some user leaves."""
    for part, cases in (("valid", spec.split.valid), ("test", spec.split.test)):
        mode = spec.mode(part)
        if mode.candidates and len(cases):
            # the user with the most items leaves the fewest to draw from
            row = spec.interactions.met[cases.user].argmax()
            draw_candidates(
                spec.interactions,
                cases[[row]],
                mode.candidates,
                spec.settings["candidate_seed"],
                spec.settings["candidates_exclude"],
            )


def check_stored_lists(spec: RunSpec) -> None:
    """Refuse `rerank_from` where it is a run of other cases, or lacks the list of some case."""
    from ..evaluation.significance import same_measure

    if not spec.lists:
        return
    row = run_record.finished_run(spec.lists)["row"]
    difference = same_measure(row, spec.measure)
    if difference:
        key, there, here = difference
        raise UserError(
            f"rerank_from: {key} is {there} in {row['run']} and {here} here; give a run over the "
            "same cases"
        )
    for part, cases in (("valid", spec.split.valid), ("test", spec.split.test)):
        if spec.mode(part).is_full and len(cases):
            _check_lists_of(spec, spec.lists, part, cases, row)


def _check_lists_of(spec: RunSpec, run: Path, part: str, cases: Any, row: dict[str, Any]) -> None:
    """Refuse a run that has not stored the list of every case of a part."""
    from ..data.cases.splits import draw
    from ..evaluation.rerank_lists import StoredLists

    cases = draw(cases, spec.settings.get(f"{part}_users") or 0)
    positions = cases.end - spec.interactions.start[cases.user]
    StoredLists(run, part, row).of(spec.interactions.users[cases.user], positions)


def check_unseen(spec: RunSpec, runs: Sequence[Path], parts: Sequence[str]) -> None:
    """Refuse weights that have learned what they are to be tested on.

    Parameters
    ----------
    spec : RunSpec
        The run. Its further datasets are looked at too, unless it is trained already.
    runs : sequence of Path
        Folders of the finished runs whose weights it uses, and so of all that they started from.
    parts : sequence of str
        The parts, "valid" or "test", whose targets must be new to them.
    """
    learned = leakage.of_starts(runs)
    if not spec.restored:
        # the first is the run's own dataset, of which it learns the training part alone
        learned += leakage.of_run(spec.run_id, spec.settings, spec.further_datasets)[1:]
    leakage.refuse(learned, spec.interactions, spec.split, spec.settings, parts)


def check_language_models(spec: RunSpec) -> None:
    """Refuse language models that cannot be downloaded. A run that has begun has its own."""
    if not spec.language_models or run_record.read_run(spec.folder) is not None:
        return
    from ..language.backbones.sources import check_reachable, errors_naming

    for key, name in spec.language_models.items():
        with errors_naming(key):
            check_reachable(name, spec.saved)


def check_answering(spec: RunSpec, done: dict[str, Any]) -> None:
    """Refuse to evaluate a finished run by settings that only training reads.

    Parameters
    ----------
    spec : RunSpec
        The evaluation, with the finished run as `restored`.
    done : dict
        `run.json` of that run.
    """
    assert spec.restored is not None
    if "routes" in done:
        raise UserError(
            f"{spec.restored.name} holds the adapters of many: ask it by recommend, and look "
            "at its models by compare --runs"
        )
    wrong = _trained_otherwise(spec.settings, done["settings"])
    if wrong:
        raise UserError(
            f"{', '.join(wrong)}: {spec.restored.name} is trained already and takes settings "
            "of data, evaluation and answering alone"
        )


def edited_since(spec: RunSpec, done: dict[str, Any]) -> str | None:
    """Say that the class of a finished run's model has been edited since.

    Parameters
    ----------
    spec : RunSpec
        The use of the finished run.
    done : dict
        `run.json` of that run.

    Returns
    -------
    str or None
        A line, or None if the class is the same, or one of the package.
    """
    assert spec.restored is not None
    trained_by = done.get("versions", {}).get("source")
    if spec.model.source in (None, trained_by):
        return None
    return (
        f"!!! {spec.model.name} has been edited since {spec.restored.name} was trained: today's "
        "class reads its weights and computes the rest anew, and may answer otherwise !!!"
    )


def _trained_otherwise(settings: Settings, stored: Settings) -> list[str]:
    """Settings of a finished run that a change would make another run."""
    allowed = inference_settings(settings)
    if layers.asks_server(settings) and layers.asks_server(stored):
        allowed.add("summarizer")  # the same model on another server
    return [key for key in settings if settings[key] != stored.get(key) and key not in allowed]


def check_same_dataset(spec: RunSpec, done: dict[str, Any]) -> None:
    """Refuse to use weights that know items by number on another dataset."""
    assert spec.restored is not None
    settings = spec.settings
    model: Any = spec.model.load()
    if spec.model.is_text and model.transferable(settings):
        return
    if spec.interactions.fingerprint != done["data"]:
        features = ""
        if "item_features" in settings:
            features = f" with item_features {settings['item_features']}"
        raise UserError(
            f"{spec.restored.name} was trained on {done['row']['dataset']} ({done['data']}), "
            f"not on {spec.dataset} ({spec.interactions.fingerprint}): "
            f"{settings['model']}{features} knows items by number and cannot change data"
        )
