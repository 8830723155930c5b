"""What a model is called, where its class is, and which settings it adds."""

import importlib
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError


@dataclass(frozen=True)
class ModelSpec:
    """A model that the harness can run; made by :func:`recbole_llm.settings.registry.find`.

    Attributes
    ----------
    key : str
        What finds the model again in any process; the value of the setting `model`.
    name : str
        Name of the class. It begins the names of run folders.
    family : str
        "text" for the models of this package and for guests that derive from them. Otherwise
        RecBole's family: "sequential", "general", "context_aware", "knowledge", "traditional".
    module : str or None
        Module of the class; None where RecBole finds the class by its name.
    takes_item_text : bool
        Whether the setting `item_features` is for it.
    tree : bool
        Whether it is a tree model of RecBole, which the harness does not run.
    guest : bool
        Whether the class is the user's own.
    settings : type or None
        Class of the settings that the model adds, see :mod:`recbole_llm.settings.schema`; None for
        models of RecBole that have RecBole's own alone.
    read_keys : frozenset of str
        Keys that a guest class of RecBole's kind reads from its config.
    source : str or None
        Digest of a guest's code; None for models whose code has a version.
    """

    key: str
    name: str
    family: str
    module: str | None = None
    takes_item_text: bool = False
    tree: bool = False
    guest: bool = False
    settings: "type[Any] | None" = None
    read_keys: frozenset[str] = frozenset()
    source: str | None = None
    loaded: type | None = field(default=None, repr=False, compare=False)

    @property
    def is_text(self) -> bool:
        """Whether it is a text model: it reads cases by row, and our trainer trains it."""
        return self.family == "text"

    def load(self) -> type:
        """Return the class. Importing it imports torch.

        Raises
        ------
        UserError
            For a tree model of RecBole.
        """
        if self.tree:
            raise UserError(
                f"{self.name}: tree models are not run by this harness; "
                "use recbole.quick_start.run_recbole"
            )
        if self.loaded is not None:
            return self.loaded
        if self.module:
            model: type = getattr(importlib.import_module(self.module), self.name)
            return model
        from recbole.utils import get_model

        of_recbole: type = get_model(self.name)
        return of_recbole
