"""Names that stand for a method, a constraint, a metric or a facts format; other packages add their own.

A registry lists what comes with tether as "module:attribute". What another package declares as an entry point of the
same group is found beside it:

    [project.entry-points."tether.editors"]
    my-method = "my_package:METHOD"

Nothing is imported before it is asked for by name.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from tether.errors import BadSettingsError, TetherError, first_line

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries by name. `group` is that of the entry points, `what` the word for an entry ("method"), `kind` the class
    that every entry must be of."""

    def __init__(self, group: str, what: str, kind: type[Any], built_in: Mapping[str, str]) -> None:
        self.group, self.what, self._kind, self._built_in = group, what, kind, dict(built_in)

    @cached_property
    def _others(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def __iter__(self) -> Iterator[str]:
        """All names: those of tether first. A name of tether cannot be taken by another package."""
        return iter((*self._built_in, *sorted(self._others.keys() - self._built_in.keys())))

    def source(self, name: str) -> str:
        """Which package an entry comes from."""
        if name in self._built_in:
            return "tether"
        distribution = self._others[name].dist
        return distribution.name if distribution is not None else self._others[name].module

    def __getitem__(self, name: str) -> Entry:
        """The entry of a name. Raises TetherError for an unknown name, and for a package whose entry does not load."""
        if name in self._built_in:
            module, _, attribute = self._built_in[name].partition(":")
            return cast(Entry, getattr(import_module(module), attribute))
        if name not in self._others:
            raise BadSettingsError(f"{name!r} is no {self.what}: choose one of {', '.join(self)}")
        where = f"{self.what} {name!r} of {self.source(name)}"
        try:
            entry = self._others[name].load()
        except Exception as error:  # whatever a stranger's module raises
            why = first_line(error)
            raise TetherError(f"{where} does not load ({why}): update or remove that package") from error
        if not isinstance(entry, self._kind):
            found, wanted = type(entry).__name__, self._kind.__name__
            raise TetherError(f"{where} is a {found}, not a {wanted}: see the guide on adding one")
        return cast(Entry, entry)
