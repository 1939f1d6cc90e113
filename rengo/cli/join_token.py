"""The join token of a command: by a flag, a file, the environment or the standard input."""

from __future__ import annotations

import argparse
import getpass
import os
import sys

from runtime.errors import ConfigError

JOIN_VARIABLE = "RENGO_JOIN_TOKEN"
_LONGEST_TOKEN_FILE = 4096


def read_token(options: argparse.Namespace) -> str:
    """Return the token from the flag, the file, the environment or the standard input.

    Raises:
        ConfigError: there is none, or the file cannot be read.
    """
    if options.token is not None:
        return str(options.token)
    if options.token_file is not None:
        try:
            with options.token_file.open("r", encoding="ascii") as file:
                return str(file.read(_LONGEST_TOKEN_FILE))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--token-file {options.token_file} cannot be read: {error}"
            ) from error
    if os.environ.get(JOIN_VARIABLE):
        return os.environ[JOIN_VARIABLE]
    if sys.stdin.isatty():
        return getpass.getpass("Join token: ")
    text = sys.stdin.readline(_LONGEST_TOKEN_FILE).strip()
    if not text:
        raise ConfigError(
            "no join token: give it by --token, --token-file, RENGO_JOIN_TOKEN or standard input"
        )
    return text
