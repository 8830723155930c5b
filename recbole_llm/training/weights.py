"""The tensors of a model: which are stored, and where they are written to and read from."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..contracts.models import StoredWeights
from ..errors import UserError
from ..storage.files import atomically
from ..storage.run_folders import WEIGHTS

OTHER = "other_parameter."  # begins the names of tensors in RecBole's `other_parameter`


def other_tensors(model) -> dict[str, torch.Tensor]:
    """The tensors of RecBole's `other_parameter`; the rest is rebuilt from the training data."""
    names = getattr(model, "other_parameter_name", [])
    return {name: getattr(model, name) for name in names if torch.is_tensor(getattr(model, name))}


def stored_weights(model) -> StoredWeights:
    """Return how a model's weights are stored.

    Parameters
    ----------
    model : AbstractRecommender
        The model.

    Returns
    -------
    StoredWeights
        The model itself, or the defaults for a model of RecBole's, which saves no files itself.
    """
    return model if isinstance(model, StoredWeights) else StoredWeights()


def trained_tensors(model) -> dict[str, torch.Tensor]:
    """Return the tensors that training changes and a run stores.

    They are every trained parameter, the buffers outside a backbone, and RecBole's
    `other_parameter`. Tied weights occur once.

    Parameters
    ----------
    model : AbstractRecommender
        The model.

    Returns
    -------
    dict of str to Tensor
        The tensors by name.
    """
    apart = stored_weights(model).externally_saved
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {
        name: value
        for name, value in all_tensors(model).items()
        if name in trained or not (name in parameters or name.startswith(apart))
    }


def all_tensors(model) -> dict[str, torch.Tensor]:
    """Return every tensor of a model that could be stored.

    Parameters
    ----------
    model : AbstractRecommender
        The model.

    Returns
    -------
    dict of str to Tensor
        The tensors by name.
    """
    other = {OTHER + name: value for name, value in other_tensors(model).items()}
    return model.state_dict() | other


def resumable_tensors(model) -> dict[str, torch.Tensor]:
    """Return the tensors that a stopped training needs to go on.

    Of a backbone that is frozen under adapters, these are the adapters alone: the constructor reads
    the other weights again from where they came from, in quantised form too.

    Parameters
    ----------
    model : AbstractRecommender
        The model.

    Returns
    -------
    dict of str to Tensor
        The tensors by name.
    """
    apart, parameters = stored_weights(model).externally_saved, dict(model.named_parameters())
    frozen = [
        name
        for name, value in parameters.items()
        if name.startswith(apart) and not value.requires_grad
    ]
    # a module with frozen weights is left out with all its tensors, such as quantisation scales
    modules = tuple({name.rpartition(".")[0] + "." for name in frozen})
    trained = {name for name, value in parameters.items() if value.requires_grad}
    return {
        name: value
        for name, value in model.state_dict().items()
        if name in trained or not name.startswith(modules)
    }


def overwrite_trained(model) -> None:
    """Overwrite the tensors that training changes with NaN, or with 0 where they are integers."""
    with torch.no_grad():
        for name, value in trained_tensors(model).items():
            filler = torch.nan if value.is_floating_point() else 0
            if name.startswith(OTHER):
                # the tensor itself may be another object's too
                setattr(model, name.removeprefix(OTHER), torch.full_like(value, filler))
            else:
                value.fill_(filler)


def save_weights(model, folder: Path) -> None:
    """Write a model's weights into a folder.

    Tensors that `StoredWeights.save` does not write go to model.safetensors.

    Parameters
    ----------
    model : AbstractRecommender
        The model.
    folder : Path
        Folder of the run.
    """
    tensors = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(stored_weights(model).externally_saved)
    }
    tensors |= {OTHER + name: value for name, value in other_tensors(model).items()}
    stored_weights(model).save(folder)
    # clone: tensors that share memory (tied weights) are refused otherwise
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomically(folder / WEIGHTS) as path:
        save_file(copies, path)


def load_weights(model, folder: Path) -> None:
    """Read what `save_weights` has written.

    Parameters
    ----------
    model : AbstractRecommender
        The model.
    folder : Path
        Folder of the run.

    Raises
    ------
    UserError
        If the weights are missing, damaged, or those of another model.
    """
    stored_weights(model).load(folder)
    load_tensors(model, folder)


def load_tensors(model, folder: Path, excluded: tuple[str, ...] = ()) -> None:
    """Read the tensors of model.safetensors.

    Parameters
    ----------
    model : AbstractRecommender
        The model.
    folder : Path
        Folder of the run.
    excluded : tuple of str
        Prefixes of the names of tensors that stay as they are.

    Raises
    ------
    UserError
        If the file is missing, damaged, or that of another model.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(
            f"{folder} holds no checkpoint ({WEIGHTS} is missing); give the folder of a finished "
            "run"
        )
    try:
        tensors = load_file(path, device=str(model.device))
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); remove {folder} and run again") from None
    for name in [name for name in tensors if name.startswith(OTHER)]:
        setattr(model, name.removeprefix(OTHER), tensors.pop(name))
    excluded += stored_weights(model).externally_saved
    expected = {
        name: value for name, value in model.state_dict().items() if not name.startswith(excluded)
    }
    tensors = {name: value for name, value in tensors.items() if not name.startswith(excluded)}
    wrong = sorted(expected.keys() ^ tensors.keys()) or [
        name for name in expected if expected[name].shape != tensors[name].shape
    ]
    if wrong:
        raise UserError(
            f"{folder} is a checkpoint of another model, dataset or setting: {len(wrong)} tensors "
            f"differ, the first is {wrong[0]}"
        )
    model.load_state_dict(tensors, strict=False)
