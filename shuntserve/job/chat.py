"""Messages to text, through the model's chat template, the way vLLM does it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
from pydantic_core import from_json

from shuntserve.core.near_miss import did_you_mean
from shuntserve.core.reject_codes import RejectCode, RowRejected
from shuntserve.errors import InvalidInput, NotFound

Message = dict[str, Any]

TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template, which is somebody's code, may raise over one row's messages."""

_PARSER = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)
"""Reads templates to see which variables they use; transformers renders them in a sandbox."""

_KNOWN_KWARGS = frozenset({"add_generation_prompt", "continue_final_message", "documents"})
_PROBE = "shuntserve content probe"


def find_chat_template(given: str | None, tokenizer: Any) -> str | None:
    """The template's text: the one given (text, file, or name of one of the tokenizer's), else the tokenizer's own,
    else None.

    Raises NotFound when `given` is none of these.
    """
    if given is not None and "{" not in given and "\n" not in given:
        path = Path(given).expanduser()
        if path.is_file():
            return path.read_text(encoding="utf-8")
        named = getattr(tokenizer, "chat_template", None)
        if isinstance(named, Mapping) and given in named:
            return str(named[given])
        raise NotFound(
            f"chat_template {given}", "is neither a file nor a template", "give the path or the template's text"
        )
    if given is not None:
        return given
    try:
        return str(tokenizer.get_chat_template())
    except (ValueError, AttributeError):
        return None


def check_template_kwargs(template: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse variables the template never asks for: they would be ignored in silence. Raises InvalidInput."""
    if not kwargs:
        return
    try:
        variables = jinja2.meta.find_undeclared_variables(_PARSER.parse(template))
    except jinja2.TemplateSyntaxError:
        return  # uses an extension this environment lacks; rendering decides
    known = (variables | _KNOWN_KWARGS) - {"messages", "tools"}
    for name in kwargs:
        if name not in known:
            raise InvalidInput(
                f"chat_template_kwargs {name!r}", "is not used by the chat template", did_you_mean(name, known)
            )


@dataclass(frozen=True, slots=True)
class ChatRenderer:
    """One job's way from messages to text. `kwargs` are the job's; a row's own stand over them."""

    tokenizer: Any
    template: str | None
    system: str | None
    kwargs: Mapping[str, Any]
    wants_parts: bool
    knows_developer: bool

    @staticmethod
    def make(tokenizer: Any, template: str | None, system: str | None, kwargs: Mapping[str, Any]) -> ChatRenderer:
        """Finds out by a probe whether the template takes content as text or only as a list of parts.

        Raises InvalidInput when the template does not compile or refuses the job's own settings.
        """
        renderer = ChatRenderer(tokenizer, template, system, kwargs, False, "developer" in (template or ""))
        if template is None:
            return renderer
        check_template_kwargs(template, kwargs)
        try:
            if _PROBE in renderer._render([[{"role": "user", "content": _PROBE}]], kwargs)[0]:
                return renderer
            parts = [{"role": "user", "content": [{"type": "text", "text": _PROBE}]}]
            in_parts = _PROBE in renderer._render([parts], kwargs)[0]
        except TEMPLATE_FAULTS as error:
            raise InvalidInput(
                "chat template", f"cannot be rendered: {error}", "check chat_template and chat_template_kwargs"
            ) from error
        return ChatRenderer(tokenizer, template, system, kwargs, in_parts, renderer.knows_developer)

    def of_prompt(self, prompt: str) -> list[Message]:
        """A plain prompt as messages."""
        return self.prepare([{"role": "user", "content": prompt}])

    def prepare(self, value: Any) -> list[Message]:
        """A row's messages in the form the template takes. Raises RowRejected."""
        if isinstance(value, str):
            try:
                value = from_json(value)
            except ValueError as error:
                raise RowRejected(RejectCode.BAD_MESSAGES, "messages are not valid JSON") from error
        if not isinstance(value, list):
            raise RowRejected(RejectCode.BAD_MESSAGES, "messages must be a list of {role, content}")
        if not value:
            raise RowRejected(RejectCode.EMPTY_PROMPT, "messages are empty")
        messages = [self._message(index, message) for index, message in enumerate(value)]
        if not self.knows_developer and any(message["role"] == "developer" for message in messages):
            messages = _developer_as_system(messages)
        if self.system is not None and all(message["role"] != "system" for message in messages):
            messages = [{"role": "system", "content": self._content([self.system])}, *messages]
        return messages

    def render(
        self, conversations: Sequence[list[Message]], row_kwargs: Sequence[Mapping[str, Any] | None]
    ) -> list[str | RowRejected]:
        """The text of each conversation, or why it has none. One bad conversation costs only itself."""
        if self.template is None:
            fault = RowRejected(RejectCode.TEMPLATE_ERROR, "the model has no chat template; set chat_template")
            return [fault] * len(conversations)
        if not any(row_kwargs):
            try:
                return list(self._render(conversations, self.kwargs))
            except TEMPLATE_FAULTS:
                pass  # find the ones to blame, one by one
        texts: list[str | RowRejected] = []
        for conversation, own in zip(conversations, row_kwargs, strict=True):
            try:
                texts.append(self._render([conversation], {**self.kwargs, **(own or {})})[0])
            except TEMPLATE_FAULTS as error:
                texts.append(RowRejected(RejectCode.TEMPLATE_ERROR, _reason(error)))
        return texts

    def _render(self, conversations: Sequence[list[Message]], kwargs: Mapping[str, Any]) -> list[str]:
        if not conversations:
            return []
        settings = {"add_generation_prompt": True, **kwargs}
        texts = self.tokenizer.apply_chat_template(
            list(conversations), chat_template=self.template, tokenize=False, **settings
        )
        return [str(text) for text in texts]

    def _content(self, texts: list[str]) -> Any:
        """Several parts become one text joined by line breaks, as in vLLM, unless the template takes parts."""
        return [{"type": "text", "text": text} for text in texts] if self.wants_parts else "\n".join(texts)

    def _message(self, index: int, value: Any) -> Message:
        if not isinstance(value, Mapping):
            raise RowRejected(RejectCode.BAD_MESSAGES, f"message {index} is not an object")
        message = {str(name): item for name, item in value.items() if item is not None}
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise RowRejected(RejectCode.BAD_MESSAGES, f"message {index} has no role")
        if "content" not in message and not (role == "assistant" and message.get("tool_calls")):
            raise RowRejected(RejectCode.BAD_MESSAGES, f"message {index} has no content")
        if "content" in message:
            message["content"] = self._content(_texts_of(index, message["content"]))
        if role == "assistant" and "tool_calls" in message:
            message["tool_calls"] = _tool_calls(index, message["tool_calls"])
            if not message["tool_calls"]:
                del message["tool_calls"]
        return message


def _texts_of(index: int, content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise RowRejected(RejectCode.BAD_MESSAGES, f"message {index} has content that is neither text nor a list")
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            raise RowRejected(
                RejectCode.BAD_MESSAGES, f"message {index} has a part that is not text; only text is read"
            )
        texts.append(text)
    return texts


def _tool_calls(index: int, calls: Any) -> list[Any]:
    """Earlier tool calls with their arguments as objects, which is what templates expect."""
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise RowRejected(RejectCode.BAD_MESSAGES, f"message {index} has tool_calls that are not a list of objects")
    parsed = []
    for call in calls:
        function = call.get("function")
        if not isinstance(function, Mapping):
            raise RowRejected(RejectCode.BAD_MESSAGES, f"message {index} has a tool call without a function")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                raise RowRejected(
                    RejectCode.BAD_MESSAGES, f"message {index} has a tool call whose arguments are not JSON"
                ) from None
        parsed.append({**call, "function": {**function, "arguments": arguments}})
    return parsed


def _developer_as_system(messages: list[Message]) -> list[Message]:
    """For templates that do not know the role `developer`: it becomes `system`, and one system message leads."""
    renamed = [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]
    leading = [message for message in renamed if message["role"] == "system"]
    if len(leading) == 1 and renamed[0] is leading[0]:
        return renamed
    texts = ["\n".join(_texts_of(0, message["content"])) for message in leading]
    merged = {**leading[0], "content": "\n\n".join(text for text in texts if text)}
    if isinstance(leading[0]["content"], list):
        merged["content"] = [{"type": "text", "text": merged["content"]}]
    return [merged, *(message for message in renamed if message["role"] != "system")]


def _reason(error: BaseException) -> str:
    """What a template itself said when it refused; other faults show their kind alone, since their text may quote the
    row."""
    if isinstance(error, jinja2.TemplateError) and not isinstance(error, jinja2.UndefinedError):
        return f"the chat template refused the messages: {error}"[:500]
    return f"the chat template failed on the messages ({type(error).__name__})"
