"""What comes before requests: options that are checked, an engine, and short pauses."""

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ... import AsyncEngine, load_chat_template
from .options import ADAPTER_VARIABLES, ServerOptions, adapters_variable
from .service import Service, names_of

logger = logging.getLogger(__name__)

SWITCH_INTERVAL = 1e-4
"""Seconds after which a thread hands Python's lock over: the engine's steps must not wait long for
the event loop, nor that for them."""


def check(model: str | None, options: ServerOptions, engine_options: Mapping[str, Any]) -> None:
    """Tells mistakes before the model loads; warns of what is set for nothing.

    Raises OptionError or ChatTemplateError.
    """
    options.load_parsers()
    load_chat_template(options.chat_template)
    _check_adapters(model, options, enabled=engine_options.get("enable_lora") is True)


@contextlib.contextmanager
def opened(
    model: str | None, options: ServerOptions, engine_options: Mapping[str, Any]
) -> Iterator[Service]:
    """The service of an engine that is made for it, and closed after it.

    Its adapters are left to be loaded, on the event loop that will serve.
    """
    loading = {"use_tqdm_on_load": sys.stderr.isatty(), **engine_options}
    with contextlib.closing(AsyncEngine(model, **loading)) as engine:
        engine.get_tokenizer()  # imported now rather than while the first chat waits
        yield Service(engine, options, model)


def keep_pauses_short() -> None:
    """Sets this process up for an engine beside an event loop, once all is made."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    # what has been made by now stays: garbage collection would look through it for most of a second
    gc.collect()
    gc.freeze()


def _check_adapters(model: str | None, options: ServerOptions, *, enabled: bool) -> None:
    """Raises OptionError for adapters that cannot be; warns of what else is set for nothing."""
    options.check_adapters(names_of(model, options), enabled=enabled)
    variable = adapters_variable(os.environ)
    if variable is None and options.lora_dir:
        logger.warning(
            "--lora-dir has no effect: clients load adapters only with %s=1.", ADAPTER_VARIABLES[0]
        )
    elif variable is not None and not enabled:
        logger.warning("%s has no effect without --enable-lora.", variable)
    elif variable is not None:
        places = ", ".join(options.lora_dir or ["any folder and from the Hub"])
        logger.warning("%s: clients may load adapters from %s.", variable, places)
