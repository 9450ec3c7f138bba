"""`deepseek chat`: talk to a served model from the terminal."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from deepseek.cli.arguments import Subparsers, add_url_argument, non_negative_float, positive_int
from deepseek.core.errors import ConfigurationError

if TYPE_CHECKING:
    from deepseek.cli.http_client import HttpClient

# A model's answer must not steer the terminal: escape sequences and their kin are dropped.
_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "chat",
        help="talk to a served model in the terminal",
        description="Talk to a model of a running server. Without a prompt it reads one from "
        "standard input, or, in a terminal, holds a conversation: Ctrl-C stops an answer, Ctrl-D "
        "(or Ctrl-C at the prompt) leaves, /clear begins anew.",
    )
    parser.add_argument("prompt", nargs="*", help="what to say; the answer is printed, no more")
    parser.add_argument("--model", help="served model (default: the first that generates)")
    add_url_argument(parser)
    parser.add_argument("--system", help="system message")
    parser.add_argument(
        "--temperature", type=non_negative_float, help="0 is greedy (default: the server's)"
    )
    parser.add_argument(
        "--max-tokens", type=positive_int, help="longest answer (default: the server's)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Answer one prompt, or converse."""
    import asyncio

    from deepseek.cli.http_client import HttpClient
    from deepseek.cli.served_models import choose_model

    prompt = " ".join(arguments.prompt)
    converse = not prompt and sys.stdin.isatty()
    if not prompt and not converse:
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise ConfigurationError("no prompt; give one as an argument or on standard input")
    with asyncio.Runner() as runner, HttpClient(arguments.url) as client:
        model = runner.run(choose_model(client, model=arguments.model, task="generate"))
        conversation = Conversation(
            client,
            model=model,
            system=arguments.system,
            temperature=arguments.temperature,
            max_tokens=arguments.max_tokens,
        )
        if converse:
            return _converse(conversation, runner.run)
        runner.run(conversation.ask(prompt, _show))
        print()
    return 0


class Conversation:
    """The messages so far, and the way to add a turn."""

    def __init__(
        self,
        client: "HttpClient",
        *,
        model: str,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.messages: list[dict[str, str]] = []
        self._client = client
        self._system = system
        options = {"temperature": temperature, "max_tokens": max_tokens}
        self._options = {name: value for name, value in options.items() if value is not None}
        self.clear()

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    async def ask(self, prompt: str, on_text: Callable[[str], None]) -> None:
        """Stream the answer to `on_text`; what was said before an interruption is remembered."""
        from deepseek.cli.chat_stream import stream_chat

        self.messages.append({"role": "user", "content": prompt})
        answer: list[str] = []

        def keep(text: str) -> None:
            answer.append(text)
            on_text(text)

        body: dict[str, Any] = {"model": self.model, "messages": self.messages, **self._options}
        try:
            await stream_chat(self._client, body, keep)
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": "".join(answer)})
            else:
                self.messages.pop()


def _converse(
    conversation: Conversation, run_turn: Callable[[Coroutine[Any, Any, None]], None]
) -> int:
    from deepseek.core.errors import DeepseekError

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    print(f"{conversation.model}: Ctrl-C stops an answer, Ctrl-D leaves, /clear begins anew")
    while True:
        try:
            prompt = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if prompt == "/clear":
            conversation.clear()
        if not prompt or prompt == "/clear":
            continue
        try:
            run_turn(conversation.ask(prompt, _show))
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        except DeepseekError as error:  # one refused turn does not end the conversation
            print(f"error: {error.message}", file=sys.stderr, end="")
        print()


def _show(text: str) -> None:
    sys.stdout.write(text.translate(_CONTROL))
    sys.stdout.flush()
