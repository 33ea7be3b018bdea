"""The table of all methods: those of this folder, of installed packages, and of a notebook."""

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import entry_points

from ..config import Recipe
from ..errors import ConfigError, brief, did_you_mean, printable
from . import (
    bob,
    chimera,
    cliplora,
    contrast,
    crossmodal,
    dafusion,
    datadream,
    diffmix,
    dipsy,
    disef,
    genie,
    issynth,
    loft,
    probe,
    protoaug,
    real,
    tip,
    unadapted,
    zero_shot,
)
from .base import Method

MARKERS = "oDs^v<>PXph8dH*"  # matplotlib's, those that can be drawn filled and empty
GROUP = "datadream.methods"  # of the entry points by which a package adds methods


class Table(Mapping[str, Method]):
    """Name -> Method, in the order of the tables and figures; packages' methods come last.

    A package's entry points are loaded on first access. One that cannot be loaded is left out with
    a warning, and `find` names it again when it misses a method.
    """

    def __init__(self) -> None:
        self._rows: dict[str, Method] = {}
        self._faults: dict[str, str] = {}
        self._registered: set[str] = set()
        self._loaded = False
        main = (*unadapted.METHODS, *datadream.METHODS)
        prompts, guided = issynth.METHODS
        others = (prompts, *disef.METHODS, *loft.METHODS)
        later = (*bob.METHODS, *genie.METHODS, *diffmix.METHODS, guided)
        later += (*contrast.METHODS, *dipsy.METHODS, *chimera.METHODS, *dafusion.METHODS)
        usual, heavy = real.METHODS
        for method in (*zero_shot.METHODS, usual, *main, *map(with_real, main)):
            self.add(method)
        for method in (heavy, *others, *map(with_real, others)):
            self.add(method)
        for method in (*later, *protoaug.METHODS):
            self.add_with_twin(method)
        for family in (cliplora, tip, probe, crossmodal):  # real images alone
            for method in family.METHODS:
                self.add(method)

    def add(self, method: Method) -> None:
        """Add one method. Raises ConfigError if it is invalid or its name is taken."""
        require_method(method)
        if method.name in self._rows:
            raise ConfigError(f"there is a method {method.name!r} already; give it another name")
        self._rows[method.name] = method

    def add_with_twin(self, method: Method) -> None:
        """Add a method and its twin with real images, if it can have one."""
        self.add(method)
        if method.generates and not method.real:
            self.add(with_real(method))

    def register(self, method: Method) -> None:
        """Add a method and its twin, replacing those registered under this name."""
        require_method(method)
        if method.name in self._registered:
            self.unregister(method.name)
        self.add_with_twin(method)
        self._registered.add(method.name)

    def registered(self) -> list[Method]:
        """Return the methods that `register` added, without their twins."""
        return [self._rows[name] for name in sorted(self._registered)]

    def unregister(self, name: str) -> None:
        """Remove a method that `register` added, and its twin with real images."""
        self._registered.discard(name)
        for one in (name, f"{name}+real"):
            self._rows.pop(one, None)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for entry in entry_points(group=GROUP):
            try:
                found = entry.load()
                for method in (found,) if isinstance(found, Method) else tuple(found):
                    self.add_with_twin(method)
            except Exception as error:  # another package may raise anything
                said = f"{entry.name!r} ({entry.value}): {type(error).__name__}: {error}"
                self._faults[entry.name] = said
                warnings.warn(f"the entry point {said} gives no method", stacklevel=2)

    def __getitem__(self, name: str) -> Method:
        self._load()
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(tuple(self._rows))

    def __len__(self) -> int:
        self._load()
        return len(self._rows)

    def find(self, name: str) -> Method:
        """Return the method of a name. Raises ConfigError, with the near miss, if unknown."""
        if name in self:
            return self[name]
        faults = "".join(
            f" The entry point {said} could not be loaded." for said in self._faults.values()
        )
        raise ConfigError(
            f"method={brief(name)} is unknown; accepted: {', '.join(self)}"
            f"{did_you_mean(name, self)}{faults}"
        )


def require_method(method: object) -> None:
    """Raise ConfigError on an object that is not a Method, or has fields no table can show."""
    if not isinstance(method, Method):
        raise ConfigError(
            f"{brief(method)} is a {type(method).__name__}; a method is an instance of "
            "datadream.methods.base.Method or of a class derived from it"
        )
    for name in ("name", "title", "colour", "cite"):
        value = getattr(method, name)
        if not isinstance(value, str) or not printable(value) or (not value and name != "cite"):
            raise ConfigError(f"{name}={brief(value)} of a method; give printable text")
    if not re.fullmatch(r"[\w+.-]{1,60}", method.name):
        raise ConfigError(
            f"name={brief(method.name)} of a method; give at most 60 letters, digits, '_', '-', "
            "'.' and '+', since it stands in commands and file names"
        )
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}", method.colour):
        raise ConfigError(f"colour={method.colour!r} of method {method.name!r}; give '#rrggbb'")
    if method.marker not in [*MARKERS]:
        raise ConfigError(
            f"marker={brief(method.marker)} of method {method.name!r}; give one of "
            f"{' '.join(MARKERS)}"
        )
    if method.loss and (method.head or not method.trained):
        raise ConfigError(
            f"method {method.name!r} has a loss, and {'a head' if method.head else 'no training'}; "
            "a loss is for a classifier that is tuned by LoRA"
        )
    if not isinstance(method.settings, Mapping):
        raise ConfigError(
            f"settings={brief(method.settings)} of method {method.name!r}; give a mapping such as "
            "{'mini': {'adapt.rank': 4}}"
        )


def with_real(method: Method) -> Method:
    """Return a method's twin, whose classifier is trained on the few real images too."""
    return replace(method, name=f"{method.name}+real", title=f"{method.title} + real", real=True)


METHODS = Table()


def register(method: Method) -> Method:
    """Add a method and its twin with real images for this process, before it runs any cells.

    Replaces an earlier registration of the same name. Raises ConfigError on an invalid method.
    """
    METHODS.register(method)
    return method


def pack_methods() -> bytes:
    """Pickle the methods that this process has registered, for the processes that it starts.

    Classes defined in a notebook are pickled by value.
    """
    if not METHODS.registered():
        return b""
    import cloudpickle

    return cloudpickle.dumps(METHODS.registered())


def adopt_methods(packed: bytes) -> None:
    """Register the methods that `pack_methods` pickled in another process."""
    for method in pickle.loads(packed) if packed else ():
        METHODS.register(method)


def method_of(recipe: Recipe) -> Method:
    """Return the method of a recipe. Raises ConfigError, with the near miss, if unknown."""
    return METHODS.find(recipe.method)
