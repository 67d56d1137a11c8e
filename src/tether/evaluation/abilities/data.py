"""Where the items of the general abilities come from."""

from dataclasses import dataclass
from pathlib import Path

from tether.errors import TetherError
from tether.evaluation.abilities.perplexity import builtin_text

HUB = "hub"
TEXT_FILE = "perplexity.txt"


@dataclass(frozen=True)
class AbilityData:
    """`folder` holds the tasks' files (None: the small sets that come with tether); `hub` allows downloads instead;
    `text` is for the perplexity."""

    text: str
    folder: Path | None = None
    hub: bool = False


def ability_data(source: str | Path | None = None, *, text: str | None = None) -> AbilityData:
    """What `--abilities-data` names: a folder (its `perplexity.txt` too, where it has one), a text file for the
    perplexity alone, `hub`, or nothing. A `text` given here is taken before any other.

    Raises TetherError for what is neither, and for a file that is no text.
    """
    if source is None or str(source) == HUB:
        return AbilityData(builtin_text() if text is None else text, hub=source is not None)
    path = Path(source)
    file = path / TEXT_FILE if path.is_dir() else path
    if not path.exists():
        raise TetherError(f"{path} is not there: give a folder with the tasks' data, a text file, or {HUB}")
    if text is None:
        try:
            text = file.read_text(encoding="utf-8") if file.is_file() else builtin_text()
        except (OSError, UnicodeDecodeError) as error:
            raise TetherError(f"{file} cannot be read ({error}): give a text file in UTF-8") from None
    return AbilityData(text, folder=path if path.is_dir() else None)
