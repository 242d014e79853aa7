"""Compare Kustomer with what the connector expects of it: python -m tools.inspect [FOLDER] [--json].

It sends at most 70 requests, which only read. The output can be shown to anybody: it has neither
the key nor an id or a value of any record.
"""

import argparse
import dataclasses
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import connector
from tools.configuration import add_folder, settings_of, warn_unless_ignored
from tools.questions import QUESTIONS, Question
from tools.samples import MAX_REQUESTS, Kustomer, Traffic, begin

_LINE_WIDTH = 100
_RETRIES = 2
# How a key begins that `fivetran configuration` has written.
_ENCRYPTED = "fivetran_encrypted:"
_WORDS = {True: "yes", False: "no", None: "too few records to tell"}
_MARKS = {True: "ok", False: "NO", None: "?"}
_LEGEND = (
    "ok: the connector relies on it, and it holds. NO: it relies on it, and it does not hold. "
    "?: it relies on it, and the answer is not known. Lines without a mark: it does not rely on it."
)


class Answer(NamedTuple):
    """The answer to a question, or why it could not be asked. `holds` is None if that is not known,
    or if the connector does not rely on the answer."""

    question: Question
    value: Any = None
    holds: bool | None = None
    problem: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    warn_unless_ignored(options.folder)
    try:
        settings = _settings(options.folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Sending at most {MAX_REQUESTS} requests ...", file=sys.stderr)
    try:
        answers, sent = inspect(settings)
    except connector.KustomerError as error:
        print(error, file=sys.stderr)
        return 1
    show = _show_json if options.json else _show_text
    try:
        show(answers, sent)
    except BrokenPipeError:
        # The reader of the output has enough. Python would fail again when it flushes the output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(any(_is_bad(answer) for answer in answers))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.inspect",
        description="Compare Kustomer with what the connector expects of it. Needs the key in the "
        "configuration.json of a folder. It only reads, and the output can be shown to anybody.",
    )
    add_folder(parser)
    parser.add_argument("--json", action="store_true", help="write the answers as JSON")
    return parser


def _settings(folder: Path) -> connector.Settings:
    """Return the settings in a folder. Raises a ValueError that says what is wrong with them."""
    settings = settings_of(folder)
    if settings.api_key.startswith(_ENCRYPTED):
        raise ValueError(
            "api_key is encrypted, and only the SDK can read it. Use a folder with the key as text."
        )
    return dataclasses.replace(
        settings,
        # The questions need full pages.
        max_records_per_page=500,
        # Somebody is watching, and the number of requests is limited.
        retry_attempts=min(settings.retry_attempts, _RETRIES),
    )


def inspect(settings: connector.Settings) -> tuple[list[Answer], int]:
    """Ask all questions. Return the answers and the number of requests. Raises KustomerError if the
    key does not work."""
    traffic = Traffic()
    with connector.open_client(settings) as client:
        client.session.auth = traffic.before
        client.session.hooks["response"].append(traffic.after)
        # Long enough for one reset of the rate limit, as when a connection is set up.
        client.limited_seconds_max = connector.__SETUP_TEST_MAX_WAIT_SECONDS
        connector.check_api_key(client)
        kustomer = begin(client, traffic)
        answers = [_answer(kustomer, question) for question in QUESTIONS]
    return answers, traffic.sent


def _answer(kustomer: Kustomer, question: Question) -> Answer:
    try:
        value = question.ask(kustomer)
    except connector.KustomerError as error:
        return Answer(question, problem=_problem(kustomer, error))
    is_known = question.relied_on and value is not None
    return Answer(question, value, question.holds(kustomer, value) if is_known else None)


def _problem(kustomer: Kustomer, error: connector.KustomerError) -> str:
    """Return an error without Kustomer's own words and without the name of the organization."""
    if isinstance(error, connector.RefusedError):
        return f"refused with status {error.status}"
    host = urlsplit(kustomer.client.settings.base_url).hostname or ""
    return str(error).replace(host, "Kustomer")


def _is_bad(answer: Answer) -> bool:
    """Return whether the connector relies on something that does not hold or could not be asked."""
    return bool(answer.question.relied_on and (answer.problem or answer.holds is False))


def _show_json(answers: list[Answer], sent: int) -> None:
    shown = {answer.question.id: _as_dict(answer) for answer in answers}
    result = {"connector": connector.VERSION, "requests": sent, "answers": shown}
    print(json.dumps(result, indent=2))


def _as_dict(answer: Answer) -> dict:
    question = answer.question
    shown = {"question": question.words, "answer": answer.value}
    if answer.problem:
        shown["could_not_ask"] = answer.problem
    return {**shown, "relied_on": question.relied_on or None, "holds": answer.holds}


def _show_text(answers: list[Answer], sent: int) -> None:
    for answer in answers:
        print(_wrapped(_line(answer)))
    requests = connector.pluralize(sent, "request")
    print("", _wrapped(_LEGEND), f"Connector {connector.VERSION}, {requests}.", sep="\n")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _LINE_WIDTH, subsequent_indent=" " * 6, break_on_hyphens=False)


def _line(answer: Answer) -> str:
    question = answer.question
    mark = _MARKS[answer.holds] if question.relied_on else ""
    words = f"could not ask: {answer.problem}" if answer.problem else _in_words(answer.value)
    if answer.holds is False:
        words += f" (the connector relies on: {question.relied_on})"
    return f"{mark:4}{question.words} {words} [{question.id}]"


def _in_words(value: Any) -> str:
    """Return an answer in words."""
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    if isinstance(value, list):
        return " ".join(value)
    if not isinstance(value, dict):
        return str(value)
    parts = (f"{name}: {_in_words(inner)}" for name, inner in value.items())
    is_nested = any(isinstance(inner, (dict, list)) for inner in value.values())
    return ("; " if is_nested else ", ").join(parts) or "none"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
