"""Conversations and replies to token ids: one function for the teacher's texts and for the student's.

A discriminator must learn what is said, not how a row was made. So a reply's row is a function of its text and of
whether it finished, whoever wrote it: surrounding white space is dropped, the text is encoded in the canonical way with
special tokens taken as plain text, end-of-text stands at the end exactly when the reply finished. The policy's loss,
in contrast, takes the ids just as they were sampled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from gad.config.models import PromptConfig
from gad.errors import DataError, ModelError
from gad.records import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are cut in the middle of a character."""


@dataclass(frozen=True, slots=True)
class EncodedReply:
    """`token_ids` end with end-of-text exactly when `finished`."""

    token_ids: tuple[int, ...]
    finished: bool


class Codec:
    """Token rows for one tokenizer.

    end_id: the token that ends a reply. stop_ids: all tokens that end sampling.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        if config.format == "chat" and not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template: "
                "use a chat model, or `prompt.format: alpaca`"
            )
        self.end_id = self._end_id()
        self.stop_ids = frozenset({self.end_id, *self._eos_ids()})

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids up to where the reply begins.

        Raises DataError where the chat template refuses the conversation (no system role, roles out of order).
        """
        prompt = self._with_system(prompt)
        text = self._chat_text(prompt) if self._config.format == "chat" else alpaca_text(prompt)
        return tuple(self._tokenizer(text, add_special_tokens=self._config.format == "alpaca")["input_ids"])

    def fits(self, prompt: Prompt) -> bool:
        """Whether the prompt is within `max_prompt_tokens`."""
        return len(self.prompt_ids(prompt)) <= self._config.max_prompt_tokens

    def reply_ids(self, text: str, *, finished: bool) -> EncodedReply:
        """The row of a reply. A text over `max_reply_tokens`, end-of-text included, is cut, and then not finished."""
        limit = self._config.max_reply_tokens
        ids = self._encode(text.strip())
        if finished and len(ids) < limit:
            return EncodedReply((*ids, self.end_id), finished=True)
        if len(ids) > limit or finished:
            ids = ids[:limit]
        kept = self._encode(_without_cut_end(self._decode(ids)))
        return EncodedReply(kept[:limit], finished=False)

    def text(self, token_ids: tuple[int, ...]) -> str:
        """The text of a sampled reply, without special tokens and surrounding white space."""
        ids = token_ids[:-1] if token_ids and token_ids[-1] in self.stop_ids else token_ids
        text = self._decode(ids)
        return text.strip() if ids != token_ids else _without_cut_end(text)

    def ids(self, text: str) -> tuple[int, ...]:
        """A text in the canonical way, special tokens taken as plain text, nothing added and nothing taken away."""
        return self._encode(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _decode(self, ids: tuple[int, ...]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _with_system(self, prompt: Prompt) -> Prompt:
        if self._config.system is None or prompt.messages[0].role == "system":
            return prompt
        return Prompt(prompt.id, (Message("system", self._config.system), *prompt.messages))

    def _chat_text(self, prompt: Prompt) -> str:
        messages = [message.as_dict() for message in prompt.messages]
        try:
            return self._render(messages, add_generation_prompt=True)
        except TemplateError as error:
            way_out = "mend the turns"
            if messages[0]["role"] == "system":
                way_out = "put the system prompt into the user's turn"
                way_out += "" if self._config.system is None else ", or leave prompt.system out"
            raise DataError(
                f"prompt {prompt.id}: the chat template of {self._tokenizer.name_or_path} refuses it ({error}); "
                f"{way_out}, or use `prompt.format: alpaca`"
            ) from error

    def _render(self, messages: list[dict[str, str]], **options: Any) -> str:
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, **{**self._config.template_arguments, **options}
        )
        assert isinstance(text, str)
        return text

    def _end_id(self) -> int:
        """The token that the chat template puts after a reply, else the tokenizer's end-of-text."""
        if self._config.format == "chat":
            reply = "gad"
            try:
                text = self._render([{"role": "user", "content": "x"}, {"role": "assistant", "content": reply}])
            except TemplateError as error:
                raise ModelError(
                    f"the chat template of {self._tokenizer.name_or_path} cannot be used ({error}): mend it, or use "
                    "`prompt.format: alpaca`"
                ) from error
            after = self._tokenizer(text.rpartition(reply)[2].lstrip(), add_special_tokens=False)["input_ids"]
            if after and self._is_special(after[0]):
                return int(after[0])
        if self._tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer of {self._tokenizer.name_or_path} has no end-of-text token (eos_token)")
        return int(self._tokenizer.eos_token_id)

    def _is_special(self, token: int) -> bool:
        """Named as special, or only marked so: Llama 3 and Phi end a reply with a token that no name mentions."""
        added = self._tokenizer.added_tokens_decoder.get(token)
        return token in self._tokenizer.all_special_ids or (added is not None and added.special)

    def _eos_ids(self) -> set[int]:
        return set() if self._tokenizer.eos_token_id is None else {int(self._tokenizer.eos_token_id)}


def _without_cut_end(text: str) -> str:
    """Without surrounding white space and without the bytes at the end that are no whole character."""
    return re.sub(rf"[\s{REPLACEMENT}]+\Z", "", text).lstrip()


def alpaca_text(prompt: Prompt) -> str:
    """The instruction / response wrapper: headings for each turn, a system prompt in front."""
    headings = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n"}
    turns = [headings[message.role] + message.content.strip() for message in prompt.messages]
    return "\n\n".join([*filter(None, turns), headings["assistant"]])
