"""Description of a model: its name, where its class is, and which settings it adds."""

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
        Identifies the model in any process; the value of the setting `model`.
    name : str
        Name of the class, and prefix of the names of run folders.
    family : str
        "text" for the models of this package and for user classes that derive from them. Otherwise
        RecBole's family: "sequential", "general", "context_aware", "knowledge", "traditional".
    module : str or None
        Module of the class; None if RecBole looks the class up by its name.
    takes_item_text : bool
        Whether the model supports the setting `item_features`.
    tree : bool
        Whether it is a tree model of RecBole, which the harness does not run.
    guest : bool
        Whether the class is defined by the user, outside of this package and RecBole.
    settings : type or None
        Class of the settings that the model adds, see :mod:`recbole_llm.settings.schema`; None if
        RecBole's own are all that it has.
    read_keys : frozenset of str
        Configuration keys that a guest which derives from RecBole's classes reads.
    source : str or None
        Digest of a guest's code; None for models whose code has a version.
    loaded : type or None
        The class, if it is imported already.
    """

    key: str
    name: str
    family: str
    module: str | None = None
    takes_item_text: bool = False
    tree: bool = False
    guest: bool = False
    settings: type[Any] | None = None
    read_keys: frozenset[str] = frozenset()
    source: str | None = None
    loaded: type | None = field(default=None, repr=False, compare=False)

    @property
    def is_text(self) -> bool:
        """Whether it is a text model: it reads `Cases`, and our trainer trains it."""
        return self.family == "text"

    def load(self) -> type:
        """Import the class, and torch with it.

        Returns
        -------
        type
            The model's class.

        Raises
        ------
        UserError
            If it is a tree model of RecBole.
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
        else:
            from recbole.utils import get_model

            model = get_model(self.name)
        return model
