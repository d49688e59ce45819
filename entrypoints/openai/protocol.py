"""What clients may ask: a model a route. What is unknown, or cannot be honoured, is refused.

A field that is null counts as left out.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .errors import bad_request
from .refused import (
    REFUSED_ADAPTER,
    REFUSED_CHAT,
    REFUSED_COMPLETION,
    Refused,
    asks_for_nothing,
    is_known,
)

RequestId = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Prompts = str | list[TokenId] | list[str] | list[list[TokenId]]
StructuredOutputs = dict[str, Any]
"""The keywords of `StructuredOutputsParams`, which checks them."""


class _Strict(BaseModel):
    """Refuses wrong types rather than guess, and fields it does not have."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
    refused: ClassVar[Mapping[str, Refused]] = {}

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = cast("dict[str, Any]", data)
        return {
            name: value
            for name, value in given.items()
            if value is not None and not asks_for_nothing(name, value, cls.refused)
            if is_known(name, cls.model_fields, cls.refused)
        }


class _Part(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class _Open(BaseModel):
    """May have more fields, which go to the chat template."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)


class StreamOptions(_Part):
    """What a stream tells besides its text."""

    include_usage: bool | None = None
    """One more chunk at the end, without choices, tells the usage."""
    continuous_usage_stats: bool | None = None
    """Every chunk tells the usage so far."""
    include_obfuscation: Literal[False] | None = None
    """Only false: chunks are not padded."""


class JsonSchemaFormat(_Part):
    """A JSON schema by which the answer is made."""

    name: str | None = None
    """A name, which the answer does not depend on."""
    description: str | None = None
    """What it is for; the answer does not depend on it."""
    schema_: dict[str, Any] = Field(alias="schema")
    """The schema."""
    strict: bool | None = None
    """Answers follow the schema either way."""


class ResponseFormat(_Part):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    """json_object: any JSON object. json_schema: by `json_schema`."""
    json_schema: JsonSchemaFormat | None = None
    """Given with type json_schema, and only then."""


class FunctionDefinition(_Open):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1)]
    """Its name."""
    description: str | None = None
    """What it does."""
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments, an object; null: it has none."""
    strict: bool | None = None
    """Arguments shall follow the schema. A forced call always does; of one that the model makes by
    itself the client should check them."""


class Tool(_Open):
    """Something the model may call: a function."""

    type: Literal["function"] = "function"
    """Only functions."""
    function: FunctionDefinition
    """The function."""


class NamedFunction(_Part):
    """The name of a function among the tools."""

    name: str
    """Its name."""


class NamedToolChoice(_Part):
    """The one function that must be called."""

    type: Literal["function"] = "function"
    """Only functions."""
    function: NamedFunction
    """Which."""


class AllowedTools(_Part):
    """The tools that may be called, of those there are."""

    mode: Literal["auto", "required"]
    """Whether one must be called."""
    tools: Annotated[list[NamedToolChoice], Field(min_length=1)]
    """Which; the model is told of no others."""


class AllowedToolChoice(_Part):
    """A choice of some of the tools."""

    type: Literal["allowed_tools"]
    """Tells it from a named choice."""
    allowed_tools: AllowedTools
    """Which, and whether one must be called."""


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolChoice


class GenerationRequest(_Strict):
    """What requests for completions and for chats have in common.

    Sampling parameters that are left out come from the model's generation config.
    """

    model: str | None = None
    """A name from /v1/models; null is the model there is."""
    frequency_penalty: float | None = None
    """[-2, 2], off the logit of a token for each time it is in the output."""
    logit_bias: dict[str, float] | None = None
    """Added to the logits of tokens, by id; values beyond +-100 count as these."""
    n: int = 1
    """Choices for each prompt."""
    presence_penalty: float | None = None
    """[-2, 2], off the logit of every token that is in the output."""
    seed: int | None = None
    """The same seed gives the same tokens."""
    stop: str | list[str] | None = None
    """Strings that end the output, which is cut before them."""
    stream: bool = False
    """Sends the answer as server-sent events, while it is made."""
    stream_options: StreamOptions | None = None
    """Only with stream."""
    temperature: float | None = None
    """[0, 2]; 0 is greedy."""
    top_p: float | None = None
    """(0, 1]: keep the fewest likely tokens whose probabilities sum to this."""
    user: str | None = None
    """Accepted; the answer does not depend on it."""
    metadata: dict[str, Any] | None = None
    """Accepted; the answer does not depend on it."""
    service_tier: Literal["auto", "default"] | None = None
    """Accepted; there is one tier."""
    safety_identifier: str | None = None
    """Accepted; the answer does not depend on it."""
    prompt_cache_key: str | None = None
    """Accepted; equal beginnings of prompts are cached without it."""

    use_beam_search: bool = False
    """Searches for the `n` likeliest outputs."""
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """Keep this many likely tokens; 0 or -1 keeps all."""
    min_p: float | None = None
    """[0, 1]: drop tokens less probable than this times the most probable one."""
    repetition_penalty: float | None = None
    """Above 0: for tokens in prompt or output; 1 is none."""
    length_penalty: float = 1.0
    """For a beam search: scores are divided by the length to this power."""
    early_stopping: bool | Literal["never"] = False
    """For a beam search: when to end with what has been found."""
    stop_token_ids: list[TokenId] | None = None
    """Tokens that end the output, and stay in it."""
    include_stop_str_in_output: bool = False
    """Keep the stop string at the end of the text."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token."""
    min_tokens: int = 0
    """Output tokens before anything but the length may end it."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text. Tool parsers that need them see them anyway."""
    spaces_between_special_tokens: bool = True
    """Spaces around added tokens, where a tokenizer joins tokens with spaces."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    """Keep this many tokens of a prompt; -1: as many as the model takes."""
    truncation_side: Literal["left", "right"] = "left"
    """Which end of the prompt is cut off."""
    allowed_token_ids: list[TokenId] | None = None
    """Only these tokens may be sampled."""
    bad_words: list[str] | None = None
    """Strings the output may not contain."""
    prompt_logprobs: int | None = None
    """Log-probabilities of prompt tokens, and this many likely ones; not with stream."""
    response_format: ResponseFormat | None = None
    """The form of the answer."""
    structured_outputs: StructuredOutputs | None = None
    """One of json, regex, choice, grammar and json_object."""
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    """Lower goes first, on a server started with --scheduling-policy priority."""
    request_id: RequestId | None = None
    """The id of the answer ends in it."""
    session_id: str | None = None
    """Accepted; there is one engine, which all sessions share."""
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    """Prompts of different salts share no cached pages."""
    return_token_ids: bool = False
    """Adds token_ids and prompt_token_ids."""
    return_tokens_as_token_ids: bool | None = None
    """Names tokens in log-probabilities `token_id:ID`; null: as the server was started."""

    @model_validator(mode="after")
    def _check_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise bad_request(
                "stream_options needs stream=true. Set it, or leave stream_options out.",
                "stream_options",
            )
        if self.stream and self.prompt_logprobs is not None:
            raise bad_request(
                "prompt_logprobs is not given in streams. Set stream=false.", "prompt_logprobs"
            )
        return self


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    refused: ClassVar[Mapping[str, Refused]] = REFUSED_COMPLETION

    prompt: Prompts
    """Text, or token ids, or a list of either."""
    best_of: int | None = None
    """Only as many as n."""
    echo: bool = False
    """The answer begins with the prompt."""
    logprobs: int | None = None
    """Log-probabilities of tokens, and of this many likely ones."""
    max_tokens: Annotated[int, Field(ge=0)] = 16
    """Most output tokens. 0, with echo only: the prompt alone."""
    add_special_tokens: bool = True
    """Encodes text with the special tokens the model wants around it."""


class ChatCompletionRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    refused: ClassVar[Mapping[str, Refused]] = REFUSED_CHAT

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    """The conversation: objects with role and content, which may be text or a list of texts
    and pictures. The chat template gets them whole."""
    logprobs: bool = False
    """Log-probabilities of output tokens."""
    top_logprobs: int | None = None
    """Those of this many likely tokens, too; only with logprobs."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most output tokens; null: up to the model's length."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """Another name of max_tokens, and goes before it."""
    tools: list[Tool] | None = None
    """Functions the model may call."""
    tool_choice: ToolChoice | None = None
    """Whether it calls one, and which; null: auto where there are tools."""
    parallel_tool_calls: bool = True
    """False: at most one call."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    """For chat templates that know it."""
    documents: list[dict[str, Any]] | None = None
    """For chat templates that have a place for documents."""
    include_reasoning: bool = True
    """False: what the model thought is left out."""
    echo: bool = False
    """The answer begins with the last message, if that is of the answer's role."""
    add_generation_prompt: bool = True
    """The prompt ends with the header of the answer."""
    continue_final_message: bool = False
    """The answer goes on with the last message; needs add_generation_prompt=false."""
    add_special_tokens: Literal[False] = False
    """Only false: the chat template writes the special tokens."""
    chat_template: str | None = None
    """A template in place of the model's, on a server that trusts its clients with that."""
    chat_template_kwargs: dict[str, Any] | None = None
    """More variables for the template, such as enable_thinking."""
    mm_processor_kwargs: dict[str, Any] | None = None
    """Settings of the image processor, such as max_pixels."""
    return_prompt_text: bool = False
    """Adds prompt_text, which the template made."""


class TokenizeRequest(_Strict):
    """`POST /tokenize`: of a prompt, or of the conversation `messages`."""

    model: str | None = None
    """A name from /v1/models; null is the model there is."""
    prompt: str | None = None
    """Text."""
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    """A conversation, of which the chat template makes a prompt."""
    add_special_tokens: bool | None = None
    """Encodes with the special tokens the model wants around a text; null: for a prompt only."""
    return_token_strs: bool = False
    """Adds token_strs, the tokens as the vocabulary spells them."""
    tools: list[Tool] | None = None
    """Tools the conversation offers."""
    add_generation_prompt: bool = True
    """The prompt ends with the header of an answer."""
    continue_final_message: bool = False
    """The last message is left open; needs add_generation_prompt=false."""
    chat_template: str | None = None
    """A template in place of the model's, on a server that trusts its clients with that."""
    chat_template_kwargs: dict[str, Any] | None = None
    """More variables for the template."""
    mm_processor_kwargs: dict[str, Any] | None = None
    """Settings of the image processor, such as max_pixels."""

    @model_validator(mode="after")
    def _check_one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise bad_request("Give one of prompt and messages, not both.", "prompt")
        return self


class LoadAdapterRequest(_Strict):
    """`POST /v1/load_lora_adapter`."""

    refused: ClassVar[Mapping[str, Refused]] = REFUSED_ADAPTER

    lora_name: str
    """What requests will call it as their model."""
    lora_path: str
    """Its folder, as the server sees it, or the id of its repository."""
    load_inplace: bool = False
    """Replaces one of that name, which serves on until then."""

    @model_validator(mode="after")
    def _check_texts(self) -> "LoadAdapterRequest":
        for name, text in (("lora_name", self.lora_name), ("lora_path", self.lora_path)):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                where = f"{name} has half of a character at {error.start}"
                raise bad_request(f"{where}. Decode the text again.", name) from error
        return self


class UnloadAdapterRequest(_Strict):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: str
    """Which."""
    lora_int_id: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Must be the server's number of it, if given."""


class DetokenizeRequest(_Strict):
    """`POST /detokenize`."""

    model: str | None = None
    """A name from /v1/models; null is the model there is."""
    tokens: list[TokenId]
    """Token ids."""
