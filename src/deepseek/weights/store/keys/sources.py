"""The built-in key sources: a file, an environment variable, a program's output."""

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

from deepseek.core.errors import ConfigurationError
from deepseek.weights.store.keys.base import key_of

KEY_ID_VARIABLE = "DEEPSEEK_KEY_ID"
"""Tells a program which key is asked for."""
_COMMAND_TIMEOUT_S = 60.0


class FileKey:
    """The key in a file that nobody else may read, such as a mounted secret."""

    def __init__(self, argument: Any) -> None:
        if not isinstance(argument, str) or not argument:
            raise ConfigurationError("`file` needs the path of a file")
        self._path = Path(argument)

    def __call__(self, key_id: str, /) -> bytes:
        place = f"the key file {self._path}"
        try:
            with self._path.open("rb") as file:
                self._require_private(os.fstat(file.fileno()))
                return key_of(file.read(1024), place=place)
        except OSError as error:
            raise ConfigurationError(f"{place} cannot be read ({error.strerror})") from error

    def _require_private(self, status: os.stat_result) -> None:
        """Raise `ConfigurationError` where others may read the file.

        PostgreSQL's rule for its key: ours and private, or root's and at most its group's, which is
        how Kubernetes mounts a secret (`defaultMode: 0440` with `fsGroup`).
        """
        is_owned = status.st_uid in (0, os.geteuid())
        allowed = stat.S_IRWXU | (stat.S_IRGRP if status.st_uid == 0 else 0)
        mode = stat.S_IMODE(status.st_mode)
        if not is_owned or mode & ~allowed:
            raise ConfigurationError(
                f"the key file {self._path} may be read or changed by others (mode {mode:04o}, "
                f"owner {status.st_uid}): chmod 0600 it, as the user that serves; one that belongs "
                "to root may be 0640"
            )


class EnvironmentKey:
    """The key in a variable of the environment that the platform was started in."""

    def __init__(self, argument: Any) -> None:
        if not isinstance(argument, str) or not argument:
            raise ConfigurationError("`env` needs the name of an environment variable")
        self._name = argument

    def __call__(self, key_id: str, /) -> bytes:
        value = os.environb.get(self._name.encode())
        if value is None:
            raise ConfigurationError(f"the environment variable {self._name} is not set")
        return key_of(value, place=f"the environment variable {self._name}")


class CommandKey:
    """The key that a program prints, such as a client of a key management service.

    It finds the key's id in `DEEPSEEK_KEY_ID`. What it says on standard error goes where the
    worker's own goes.
    """

    def __init__(self, argument: Any) -> None:
        is_list = isinstance(argument, list) and all(isinstance(word, str) for word in argument)
        if not is_list or not argument or not argument[0]:
            raise ConfigurationError("`command` needs a program and its arguments, as a list")
        self._command: list[str] = argument

    def __call__(self, key_id: str, /) -> bytes:
        place = f"the key command {self._command[0]!r}"
        try:
            done = subprocess.run(  # noqa: S603 - the operator's own, without a shell
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env={**os.environ, KEY_ID_VARIABLE: key_id},
                timeout=_COMMAND_TIMEOUT_S,
                check=False,
            )
        except OSError as error:
            raise ConfigurationError(f"{place} cannot be run ({error.strerror})") from error
        except subprocess.TimeoutExpired:
            # `from None`: the exception carries what was printed.
            raise ConfigurationError(
                f"{place} did not end within {_COMMAND_TIMEOUT_S:g} s"
            ) from None
        if done.returncode:
            raise ConfigurationError(
                f"{place} failed with status {done.returncode}; what it said stands in the log"
            )
        return key_of(done.stdout, place=f"the output of {place}")
