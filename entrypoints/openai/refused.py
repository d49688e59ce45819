"""Fields known from elsewhere that this server cannot honour, and names nobody knows."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from ...errors import nearest
from .errors import bad_request


class Refused(NamedTuple):
    """A field known from elsewhere that has no effect here: refused where it asks for one."""

    remedy: str
    neutral: tuple[Any, ...] = ()
    """Values, besides null, that ask for nothing."""


_STRUCTURED = "Use structured_outputs, such as {%r: ...}."
_LATER = "Leave it out: this server takes text and images alone."
_LEAVE_OUT = "Leave it out."
_REFUSED = {
    "guided_json": Refused(_STRUCTURED % "json"),
    "guided_regex": Refused(_STRUCTURED % "regex"),
    "guided_choice": Refused(_STRUCTURED % "choice"),
    "guided_grammar": Refused(_STRUCTURED % "grammar"),
    "guided_json_object": Refused(_STRUCTURED % "json_object", (False,)),
    "guided_decoding_backend": Refused(_LEAVE_OUT),
    "guided_whitespace_pattern": Refused(_STRUCTURED % "regex"),
    "structural_tag": Refused(_STRUCTURED % "grammar"),
    "prompt_embeds": Refused("Send the prompt as text or token ids."),
    "logprob_token_ids": Refused("Ask for more logprobs, and pick from them.", ([],)),
    "kv_transfer_params": Refused(_LEAVE_OUT, ({},)),
    "ec_transfer_params": Refused(_LEAVE_OUT, ({},)),
    "thinking_token_budget": Refused("Bound the output with max_tokens."),
    "repetition_detection": Refused("Use repetition_penalty or frequency_penalty."),
    "stream_interval": Refused(_LEAVE_OUT, (1,)),
    "vllm_xargs": Refused(_LEAVE_OUT, ({},)),
    "logits_processors": Refused("Use logit_bias, allowed_token_ids or bad_words.", ([],)),
}
REFUSED_COMPLETION = {
    **_REFUSED,
    "suffix": Refused("Leave it out: the model continues a prompt and fills no gaps.", ("",)),
}
REFUSED_CHAT = {
    **_REFUSED,
    "audio": Refused(_LATER),
    "modalities": Refused('Ask for ["text"]: this server makes text only.', (["text"], [])),
    "media_io_kwargs": Refused(_LATER, ({},)),
    "functions": Refused("Use tools.", ([],)),
    "function_call": Refused("Use tool_choice.", ("none",)),
    "prediction": Refused(_LEAVE_OUT),
    "store": Refused("Leave it out: the server keeps no conversations.", (False,)),
    "verbosity": Refused("Ask for it in a message.", ("medium",)),
    "web_search_options": Refused("Offer a tool that searches.", ()),
    "moderation": Refused(_LEAVE_OUT),
    "prompt_cache_options": Refused(_LEAVE_OUT, ({},)),
    "prompt_cache_retention": Refused(_LEAVE_OUT, ("in_memory", "in-memory")),
}

REFUSED_ADAPTER = {
    "lora_int_id": Refused("Leave it out: the server numbers adapters itself."),
    "is_3d_lora_weight": Refused(_LEAVE_OUT, (False,)),
}


def asks_for_nothing(name: str, value: Any, refused: Mapping[str, Refused]) -> bool:
    """Whether a refused field is there without effect. Raises ApiError where it asks for one."""
    if name not in refused:
        return False
    remedy, neutral = refused[name]
    if not any(type(value) is type(one) and value == one for one in neutral):
        raise bad_request(f"{name} is not supported. {remedy}", name)
    return True


def is_known(name: str, fields: Collection[str], refused: Iterable[str]) -> bool:
    """True; raises ApiError for a name that is no field."""
    if name not in fields:
        hint = nearest(name, [*fields, *refused]) or " Leave it out."
        raise bad_request(f"There is no field {name!r}.{hint}", name)
    return True
