"""Chat templates as Hugging Face writes them."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepseek.core.errors import InvalidRequest, ModelSourceError, UnsupportedParameter
from deepseek.serving.chat_template import ChatTemplate, load_chat_template

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.arguments.city }}]{% endfor %}"
    "{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "weather", "description": "<b>"}}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, special_tokens={"bos_token": "<s>"}, origin="test")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_conversation_becomes_the_models_prompt() -> None:
    rendered = template(CHATML).render([{"role": "system", "content": "Be brief."}, user("Hi")])
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_special_tokens_and_extra_arguments_reach_the_template() -> None:
    source = "{{ bos_token }}{{ 'think' if enable_thinking else 'no' }}"
    rendered = template(source).render([user("x")], template_kwargs={"enable_thinking": True})
    assert rendered == "<s>think"


def test_tools_are_written_as_plain_json() -> None:
    assert template(WITH_TOOLS).render([user("x")], tools=[TOOL]).startswith(json.dumps(TOOL))


def test_tool_call_arguments_are_mappings_inside_the_template() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "w", "arguments": '{"city":"Ulm"}'}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert template(WITH_TOOLS).render([user("x"), message]).endswith("[Ulm]")


def test_tools_that_a_template_would_drop_are_refused() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        template(CHATML).render([user("x")], tools=[TOOL])
    assert caught.value.param == "tools"


def test_a_templates_own_complaint_reaches_the_caller() -> None:
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        template(source).render([user("x")])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append('x') }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(attack: str) -> None:
    with pytest.raises(InvalidRequest):
        template(attack).render([user("x")])


def test_the_training_mark_changes_nothing() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert template(source).render([user("kept")]) == "kept"


def test_a_directory_gives_its_template_in_any_of_three_ways(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one", "eos_token": {"content": "</s>"}}))
    one = load_chat_template(tmp_path)
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": named}))
    two = load_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("three")
    three = load_chat_template(tmp_path)
    assert [t.render([user("x")]) for t in (one, two, three) if t] == ["one", "two", "three"]


def test_broken_jinja_names_the_directory(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ModelSourceError, match=tmp_path.name):
        load_chat_template(tmp_path)
