"""Libraries that come with an extra."""

import importlib.util
from collections.abc import Sequence

from .. import OptionError


def need(modules: Sequence[str], what: str, extra: str) -> None:
    """Raises OptionError for modules that are missing, and says which extra has them.

    Args:
        what: the subject of the error and its verb, such as "the server needs".
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"{what} {', '.join(missing)}: run `pip install 'quire[{extra}]'`.")
