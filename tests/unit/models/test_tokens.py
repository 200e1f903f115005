"""One function for the teacher's texts and the student's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from gad.config.models import PromptConfig
from gad.errors import DataError, ModelError
from gad.models.tokens import REPLACEMENT, Codec, alpaca_text
from gad.records import Message, Prompt
from support import tiny
from unit.training import game

END, START, PAD = 256, 257, 258
SYSTEM, USER, ASSISTANT = Message("system", "Be kind"), Message("user", "Hi "), Message("assistant", "Yo")


def fresh(template: str | None = tiny.CHAT_TEMPLATE, *, eos: str | None = "<|end|>", **specials: Any) -> Any:
    """The byte-level tokenizer with a template and an end-of-text of choice."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer, eos_token=eos, pad_token="<|pad|>", **specials
    )
    made.chat_template = template
    return made


def codec(tokenizer: Any, **settings: Any) -> Codec:
    return Codec(tokenizer, PromptConfig(**settings))


def read(ids: tuple[int, ...]) -> str:
    """Ids as text, special tokens shown."""
    return tiny.tokenizer().decode(list(ids), skip_special_tokens=False)


def ids_of(text: str) -> tuple[int, ...]:
    return tiny.codec().reply_ids(text, finished=False).token_ids


def test_a_chat_prompt_ends_where_the_reply_begins() -> None:
    prompt = Prompt("p", (SYSTEM, USER, ASSISTANT, USER))
    assert read(tiny.codec().prompt_ids(prompt)) == (
        "<|start|>system\nBe kind<|end|>\n<|start|>user\nHi <|end|>\n<|start|>assistant\nYo<|end|>\n"
        "<|start|>user\nHi <|end|>\n<|start|>assistant\n"
    )
    assert [id for id in tiny.codec().prompt_ids(prompt) if id >= END] == [START, END] * 4 + [START]


def test_template_arguments_reach_the_template() -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ mood }}<|end|>"
    made = codec(fresh(template), template_arguments={"mood": "calm"})
    assert read(made.prompt_ids(Prompt("p", (USER,)))) == "Hi calm<|end|>"


def test_a_system_prompt_of_the_run_is_for_conversations_without_one() -> None:
    made = codec(tiny.tokenizer(), system="Be brief")
    assert read(made.prompt_ids(Prompt("p", (USER,)))).startswith("<|start|>system\nBe brief<|end|>\n<|start|>user")
    assert made.prompt_ids(Prompt("p", (SYSTEM, USER))) == tiny.codec().prompt_ids(Prompt("p", (SYSTEM, USER)))
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none here') }}{% endif %}<|end|>"
    with pytest.raises(DataError, match=r"put the system prompt into the user's turn, or leave prompt\.system out"):
        codec(fresh(refusing), system="Be brief").prompt_ids(Prompt("p", (USER,)))


def test_an_empty_system_prompt_keeps_a_template_from_its_own() -> None:
    template = (
        "{% if messages[0]['role'] != 'system' %}I am a model. {% endif %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}<|end|>"
    )
    assert read(codec(fresh(template)).prompt_ids(Prompt("p", (USER,)))) == "I am a model. Hi <|end|>"
    assert read(codec(fresh(template), system="").prompt_ids(Prompt("p", (USER,)))) == "Hi <|end|>"
    alpaca = Prompt("p", (USER,))
    assert codec(fresh(None), format="alpaca", system="").prompt_ids(alpaca) == (
        codec(fresh(None), format="alpaca").prompt_ids(alpaca)
    )


def test_alpaca_by_hand() -> None:
    prompt = Prompt("p", (SYSTEM, USER, ASSISTANT, USER))
    text = "Be kind\n\n### Instruction:\nHi\n\n### Response:\nYo\n\n### Instruction:\nHi\n\n### Response:\n"
    assert alpaca_text(prompt) == text
    assert read(tiny.codec(format="alpaca").prompt_ids(prompt)) == text


def test_alpaca_needs_no_template() -> None:
    made = codec(fresh(None), format="alpaca")
    assert (made.end_id, made.stop_ids) == (END, {END})


def test_no_chat_template_is_refused_with_the_way_out() -> None:
    with pytest.raises(ModelError, match=r"has no chat template: use a chat model, or `prompt\.format: alpaca`"):
        codec(fresh(None))


def test_a_template_without_system_role() -> None:
    made = codec(fresh(tiny.TEMPLATE_WITHOUT_SYSTEM))
    assert read(made.prompt_ids(Prompt("p", (USER,)))).startswith("<|start|>user")
    with pytest.raises(DataError, match=r"prompt p9: .*no system role.*put the system prompt into the user's turn"):
        made.prompt_ids(Prompt("p9", (SYSTEM, USER)))


def test_a_template_that_refuses_the_turns() -> None:
    template = "{{ raise_exception('roles must alternate') if messages|length > 2 }}<|end|>" + tiny.CHAT_TEMPLATE
    with pytest.raises(DataError, match=r"prompt p9: .*roles must alternate.*mend the turns, or use `prompt\.format"):
        codec(fresh(template)).prompt_ids(Prompt("p9", (USER, ASSISTANT, USER)))


@pytest.mark.parametrize("between", ["", "\n", " "])
def test_the_end_is_the_templates_where_eos_is_another(between: str) -> None:
    """As in Gemma (<end_of_turn>, eos <eos>): the template's token ends a reply, both stop sampling."""
    template = "{% for m in messages %}{{ m['content'] }}" + between + "<|start|>\n{% endfor %}"
    made = codec(fresh(template, additional_special_tokens=["<|start|>"]))
    assert (made.end_id, made.stop_ids) == (START, {START, END})
    assert made.reply_ids("x", finished=True).token_ids[-1] == START
    assert made.text((*made.reply_ids("x", finished=False).token_ids, END)) == "x"
    assert made.text((*made.reply_ids("x", finished=False).token_ids, START)) == "x"


def test_the_end_need_not_be_a_named_special_token() -> None:
    """As in Llama 3 and Phi: the token is marked special in the tokenizer, but neither eos nor listed by name."""
    raw = fresh("{% for m in messages %}{{ m['content'] }}<|eot|>{% endfor %}")
    raw.add_tokens([AddedToken("<|eot|>", special=True)])
    eot = raw.convert_tokens_to_ids("<|eot|>")
    made = codec(raw)
    assert (made.end_id, made.stop_ids) == (eot, {eot, END})


def test_a_template_that_ends_replies_with_plain_text_leaves_eos() -> None:
    made = codec(fresh("{% for m in messages %}{{ m['content'] }}\n\nHuman:{% endfor %}"))
    assert (made.end_id, made.stop_ids) == (END, {END})


def test_no_end_at_all_is_refused() -> None:
    with pytest.raises(ModelError, match="has no end-of-text token"):
        codec(fresh("{% for m in messages %}{{ m['content'] }}{% endfor %}", eos=None))
    with pytest.raises(ModelError, match="has no end-of-text token"):
        codec(fresh(None, eos=None), format="alpaca")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("surrounding", ["", " ", "\n\t"])
def test_a_row_is_the_text_and_the_end_where_finished(finished: bool, surrounding: str) -> None:
    row = tiny.codec().reply_ids(f"{surrounding}né 漢 🎈{surrounding}", finished=finished)
    assert read(row.token_ids) == "né 漢 🎈" + "<|end|>" * finished
    assert row.finished == finished
    assert len(row.token_ids) == len("né 漢 🎈".encode()) + finished


@pytest.mark.parametrize(
    ("length", "finished", "kept", "ends"),
    [
        (7, True, 7, True),  # eight tokens with the end: fits exactly
        (8, True, 8, False),  # the end would be the ninth
        (9, True, 8, False),
        (7, False, 7, False),
        (8, False, 8, False),
        (9, False, 8, False),
        (0, True, 0, True),
        (0, False, 0, False),
    ],
)
def test_around_the_limit_of_eight(length: int, finished: bool, kept: int, ends: bool) -> None:
    row = tiny.codec(max_reply_tokens=8).reply_ids("abcdefghij"[:length], finished=finished)
    assert read(row.token_ids) == "abcdefghij"[:kept] + "<|end|>" * ends
    assert row.finished == ends


@pytest.mark.parametrize("limit", range(1, 12))
def test_characters_are_not_cut_in_the_middle(limit: int) -> None:
    """'aé漢🎈' has 1 + 2 + 3 + 4 bytes, one token each: what does not fit whole is left out."""
    row = tiny.codec(max_reply_tokens=limit).reply_ids("aé漢🎈", finished=True)
    whole = {1: "a", 2: "a", 3: "aé", 4: "aé", 5: "aé", 6: "aé漢", 7: "aé漢", 8: "aé漢", 9: "aé漢"}
    assert read(row.token_ids) == whole.get(limit, "aé漢🎈" + "<|end|>" * (limit > 10))


def test_nothing_fits() -> None:
    assert tiny.codec(max_reply_tokens=3).reply_ids("🎈", finished=True).token_ids == ()


def test_white_space_at_the_cut_is_dropped() -> None:
    row = tiny.codec(max_reply_tokens=4).reply_ids("abc def", finished=True)
    assert read(row.token_ids) == "abc"


def test_special_tokens_in_a_text_are_plain_text() -> None:
    text = "a<|end|>b<|start|><|pad|>"
    ids = tiny.codec().reply_ids(text, finished=True).token_ids
    assert len(ids) == len(text) + 1
    assert [id for id in ids if id >= END] == [END]
    assert tiny.codec().text(ids) == text


def test_special_tokens_that_were_sampled_are_not_text() -> None:
    a, b = tiny.codec().reply_ids("ab", finished=False).token_ids
    assert tiny.codec().text((START, a, PAD, b, END)) == "ab"
    assert tiny.codec().text((END,)) == ""
    assert tiny.codec().text(()) == ""


@pytest.mark.parametrize("kept", range(1, 11))
def test_a_student_cut_in_the_middle_of_a_character_equals_the_teacher_cut_there(kept: int) -> None:
    ids = tiny.codec().reply_ids("aé漢🎈", finished=False).token_ids[:kept]
    text = tiny.codec().text(ids)
    assert REPLACEMENT not in text
    cut = tiny.codec(max_reply_tokens=kept)
    assert cut.reply_ids(text, finished=False) == cut.reply_ids("aé漢🎈", finished=False)


def test_broken_bytes_inside_a_reply_stay_visible() -> None:
    """A student may sample half a character and go on; that is its text, end or no end."""
    half = tiny.codec().reply_ids("é", finished=False).token_ids[:1]
    x = tiny.codec().reply_ids("x", finished=False).token_ids
    assert tiny.codec().text((*half, *x, END)) == f"{REPLACEMENT}x"
    assert tiny.codec().text((*x, *half, END)) == f"x{REPLACEMENT}"
    assert tiny.codec().text((*x, *half)) == "x"
    tab = (ids_of("a\tb")[1],)
    assert tiny.codec().text((*x, *half, *tab, *half)) == "x"
    assert tiny.codec().reply_ids(f"x{REPLACEMENT}\t{REPLACEMENT}", finished=False).token_ids == x


def test_a_prompt_fits_up_to_its_limit() -> None:
    prompt = Prompt("p", (USER,))
    length = len(tiny.codec().prompt_ids(prompt))
    assert [tiny.codec(max_prompt_tokens=length + more).fits(prompt) for more in (-1, 0, 1)] == [False, True, True]


words = st.text(st.sampled_from("thein ar🎈é漢\n<|end|>"), max_size=30)


@given(words | st.text(max_size=20), st.booleans(), st.integers(1, 20))
def test_a_row_of_a_rows_text_is_that_row(text: str, finished: bool, limit: int) -> None:
    """Idempotent, also with merges, and never over the limit; the end stands exactly where finished."""
    made = game.codec(limit=limit)
    row = made.reply_ids(text, finished=finished)
    assert len(row.token_ids) <= limit
    assert (row.token_ids[-1:] == (END,)) == row.finished
    assert END not in row.token_ids[:-1]
    assert row.finished <= finished
    again = made.reply_ids(made.text(row.token_ids), finished=row.finished)
    assert again == row


@given(st.lists(st.integers(0, 263).filter(lambda id: id != END), max_size=20), st.booleans())
def test_a_row_depends_on_the_text_alone(ids: list[int], finished: bool) -> None:
    """Whatever was sampled: teacher and student rows of one text are one row."""
    made = game.codec(limit=200)
    sampled = (*ids, END) if finished else tuple(ids)
    text = made.text(sampled)
    assert text == text.strip()
    student = made.reply_ids(text, finished=finished)
    assert student == made.reply_ids(f"\n{text} ", finished=finished)
    assert made.text(student.token_ids) == text
