"""What a client asks of a fake engine: the bodies of /v1/completions and /v1/chat/completions, checked."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

# A fake engine has no tokenizer: this many bytes of text count as one token.
BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
DEFAULT_MAX_TOKENS = 16
NATURAL_SIGMA = 0.8


class BadRequest(Exception):
    """The body cannot be served; `status` is 400 or 404."""

    def __init__(self, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request.  `output_tokens` is where it will end by itself, `natural` whether that is a stop token."""

    chat: bool
    prompt_tokens: int
    max_tokens: int
    output_tokens: int
    natural: bool
    priority: int
    stream: bool
    usage: bool
    chunk_usage: bool
    blocks: tuple[Hashable, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the server knows when it reads a body.  `mean_output_tokens`: of answers that end by themselves."""

    model: str
    model_len: int
    block: int
    seed: int
    mean_output_tokens: float


def read(body: Any, number: int, rules: Rules, *, chat: bool) -> Ask:
    """The `number`-th request as asked; BadRequest says what is wrong."""
    if not isinstance(body, Mapping):
        raise BadRequest("the body must be a JSON object")
    model = body.get("model", rules.model)
    if model != rules.model:
        raise BadRequest(f"The model `{model}` does not exist.", 404, "model")
    if _whole(body, "n", 1, low=1) != 1:
        raise BadRequest("n must be 1: the fake engine makes one answer", param="n")
    tokens, blocks = _chat_prompt(body, rules) if chat else _prompt(body.get("prompt"), rules)
    if tokens < 1:
        raise BadRequest("the prompt must hold at least one token", param="prompt")
    most = _max_tokens(body, tokens, rules, chat=chat)
    natural = most
    if not body.get("ignore_eos", False):
        natural = max(_natural(number, rules), _whole(body, "min_tokens", 0, low=0))
    options = body.get("stream_options") or {}
    if not isinstance(options, Mapping):
        raise BadRequest("stream_options must be an object", param="stream_options")
    return Ask(
        chat=chat,
        prompt_tokens=tokens,
        max_tokens=most,
        output_tokens=min(most, natural),
        natural=natural < most,
        priority=_whole(body, "priority", 0),
        stream=bool(body.get("stream", False)),
        usage=bool(options.get("include_usage", False)),
        chunk_usage=bool(options.get("continuous_usage_stats", False)),
        blocks=blocks,
    )


def _max_tokens(body: Mapping[str, Any], prompt: int, rules: Rules, *, chat: bool) -> int:
    room = rules.model_len - prompt
    name = "max_completion_tokens" if chat and body.get("max_completion_tokens") is not None else "max_tokens"
    most = _whole(body, name, room if chat else DEFAULT_MAX_TOKENS, low=1)
    if room < 1 or most > room:
        raise BadRequest(
            f"This model's maximum context length is {rules.model_len} tokens. However, you requested {most} output tokens"
            f" and your prompt contains {prompt} input tokens, for a total of {prompt + most} tokens.",
            param=name,
        )
    return most


def _natural(number: int, rules: Rules) -> int:
    """Length at which this answer ends by itself: lognormal, drawn by the request's number."""
    z = Random(f"{rules.seed} natural length {number}").gauss(0.0, 1.0)
    return max(1, round(rules.mean_output_tokens * math.exp(NATURAL_SIGMA * z - 0.5 * NATURAL_SIGMA**2)))


def _whole(body: Mapping[str, Any], name: str, default: int, low: int | None = None) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
        raise BadRequest(f"{name} must be a whole number{'' if low is None else f' >= {low}'}", param=name)
    return value


def _prompt(prompt: Any, rules: Rules) -> tuple[int, tuple[Hashable, ...]]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return _text(prompt.encode(), rules)
    if isinstance(prompt, list) and all(type(token) is int and token >= 0 for token in prompt):
        return len(prompt), _chain(prompt, rules.block)
    raise BadRequest("prompt must be a string or a list of token ids; batches are not served", param="prompt")


def _chat_prompt(body: Mapping[str, Any], rules: Rules) -> tuple[int, tuple[Hashable, ...]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, Mapping) for m in messages):
        raise BadRequest("messages must be a list of at least one message", param="messages")
    parts = []
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
        parts.append(str(content))
    tokens, blocks = _text("\n".join(parts).encode(), rules)
    return tokens + TOKENS_PER_MESSAGE * len(messages), blocks


def _text(data: bytes, rules: Rules) -> tuple[int, tuple[Hashable, ...]]:
    return -(-len(data) // BYTES_PER_TOKEN), _chain(data, rules.block * BYTES_PER_TOKEN)


def _chain(content: list[int] | bytes, size: int) -> tuple[Hashable, ...]:
    """A name for each full block that tells its content and everything before it."""
    names: list[int] = []
    before = 0
    for start in range(0, len(content) - size + 1, size):
        part = content[start : start + size]
        before = hash((before, part if isinstance(part, bytes) else tuple(part)))
        names.append(before)
    return tuple(names)
