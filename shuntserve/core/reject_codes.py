"""Why ingest refused a row: the closed set of codes, with the table users read.

| code                       | meaning                                                                            |
|----------------------------|------------------------------------------------------------------------------------|
| `no_prompt`                | prompt, messages and prompt_token_ids are all null, or a template's column is      |
| `both_prompt_and_messages` | more than one of prompt, messages and prompt_token_ids has a value                 |
| `empty_prompt`             | the prompt has no characters, no messages, or no tokens                            |
| `prompt_too_long`          | the prompt leaves no room for one output token in the model's context              |
| `wrong_type`               | a value has a type its column cannot have, or a line is not a request              |
| `bad_messages`             | messages are not a list of {role, content} that a chat template can take           |
| `template_error`           | the chat template itself refused these messages                                    |
| `bad_token_ids`            | prompt_token_ids holds an id outside the vocabulary                                |
| `null_id`                  | the row has no request id although the column exists, or an empty one              |
| `duplicate_id`             | an earlier row (by file, then row) has the same request id                         |
| `unknown_parameter`        | a parameter nobody knows; the message names the near miss                          |
| `unsupported_parameter`    | a known parameter that offline batches cannot honour                               |
| `bad_parameter`            | a parameter's value is out of range or contradicts another                         |
"""

from __future__ import annotations

from enum import StrEnum


class RejectCode(StrEnum):
    """Codes of ingest rejects; the module's table says what each means."""

    NO_PROMPT = "no_prompt"
    BOTH_PROMPT_AND_MESSAGES = "both_prompt_and_messages"
    EMPTY_PROMPT = "empty_prompt"
    PROMPT_TOO_LONG = "prompt_too_long"
    WRONG_TYPE = "wrong_type"
    BAD_MESSAGES = "bad_messages"
    TEMPLATE_ERROR = "template_error"
    BAD_TOKEN_IDS = "bad_token_ids"  # noqa: S105 (a code, no password)
    NULL_ID = "null_id"
    DUPLICATE_ID = "duplicate_id"
    UNKNOWN_PARAMETER = "unknown_parameter"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    BAD_PARAMETER = "bad_parameter"


class RowRejected(Exception):
    """One row is at fault. It becomes a reject; the job goes on. Messages never quote prompt text."""

    def __init__(self, code: RejectCode, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")
