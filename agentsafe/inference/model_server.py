"""Serve a model from one process to many jobs on the same machine.

The service listens before it loads the model, so jobs connect at once and wait for their answers.
It serves the same backend that a job would load itself, so answers do not depend on it. It listens
on a Unix socket in a folder that only its user may enter and needs neither a port nor a key. A
connection carries JSON lines: numbered requests, and answers in any order. Not covered: models on
other machines; use the backend `openai` for those.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from agentsafe._util.atomic_write import whole_file
from agentsafe.errors import ServerTrouble, UserError
from agentsafe.inference.types import Choice, Completion, Message, Sampling, Scorer

log = logging.getLogger(__name__)

_LONGEST_LINE = 2**30  # bytes
_BACKLOG = 4096  # connections that may wait while the model is loaded
_CHECK_EVERY = 1.0  # seconds between checks whether the service is still needed


class _Request(msgspec.Struct, omit_defaults=True):
    """A request: for a completion if it has a `sampling`, else for probabilities of `choices`."""

    number: int
    messages: list[Message]
    sampling: Sampling | None = None
    choices: tuple[str, ...] = ()


class _Answer(msgspec.Struct, omit_defaults=True):
    """The answer to a request: a completion, a choice, a `UserError`'s text or another error.

    `trouble` tells that the other error was a `ServerTrouble`.
    """

    number: int
    completion: Completion | None = None
    choice: Choice | None = None
    user_error: str = ""
    other_error: str = ""
    trouble: bool = False


_read_request = msgspec.json.Decoder(_Request).decode
_read_answer = msgspec.json.Decoder(_Answer).decode


@contextmanager
def listening(announcement: str | Path, log_file: str | Path) -> Iterator[socket.socket]:
    """Open a socket for jobs and announce it in a file, until the block ends.

    Args:
        announcement: written atomically with the socket's address, deleted at the end.
        log_file: of the service; jobs name it in their errors.

    Raises:
        UserError: the path of the folder for temporary files is too long for a socket.
    """
    with tempfile.TemporaryDirectory(prefix="agentsafe-") as folder:
        path = str(Path(folder, "socket"))
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(path)
            except OSError as error:
                if error.errno is not None:
                    raise
                raise UserError(
                    f"{path}: the path is too long for a socket; set TMPDIR to a shorter one"
                ) from None
            listener.listen(_BACKLOG)
            where = {"socket": path, "host": socket.gethostname(), "log": str(log_file)}
            with whole_file(announcement) as partial:
                partial.write_text(json.dumps(where) + "\n", encoding="utf-8")
            try:
                yield listener
            finally:
                Path(announcement).unlink(missing_ok=True)


def serve_model(model: Scorer, listener: socket.socket, announcement: str | Path) -> None:
    """Answer all jobs until SIGTERM, or until the announcement or the parent process is gone.

    Args:
        model: answers the requests; it generates one token first, as a test.
        listener: the socket that `listening` opened.
        announcement: the file that `listening` wrote.

    Raises:
        UserError: the model cannot answer.
    """
    asyncio.run(_serve(model, listener, Path(announcement)))


async def _serve(model: Scorer, listener: socket.socket, announcement: Path) -> None:
    stopped, parent = asyncio.Event(), os.getppid()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await model.complete([Message(role="user", content="Hello")], Sampling(max_tokens=1))
    log.info("ready")
    connections: set[asyncio.Task] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = loop.create_task(_converse(model, reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_unix_server(connected, sock=listener, limit=_LONGEST_LINE)
    while not stopped.is_set() and announcement.exists() and os.getppid() == parent:
        with suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), _CHECK_EVERY)
    server.close()
    for task in list(connections):
        task.cancel()
    await asyncio.gather(*connections, return_exceptions=True)
    log.info("ended: no longer needed")


async def _converse(
    model: Scorer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer one job; cancel its pending requests when it disconnects."""
    try:
        async with asyncio.TaskGroup() as requests:
            pending: set[asyncio.Task] = set()
            while line := await reader.readline():
                task = requests.create_task(_answer(model, _read_request(line), writer))
                pending.add(task)
                task.add_done_callback(pending.discard)
            for task in pending:
                task.cancel()
    except* ConnectionError:
        log.info("a job disconnected before its answer")
    finally:
        writer.close()


async def _answer(model: Scorer, request: _Request, writer: asyncio.StreamWriter) -> None:
    answer = _Answer(request.number)
    try:
        if request.sampling is not None:
            answer.completion = await model.complete(request.messages, request.sampling)
        else:
            answer.choice = await model.choose(request.messages, request.choices)
    except UserError as error:
        answer.user_error = str(error)
    except Exception as error:
        log.exception("a request failed")
        answer.other_error = f"{type(error).__name__}: {error}"
        answer.trouble = isinstance(error, ServerTrouble)
    writer.write(msgspec.json.encode(answer) + b"\n")
    await writer.drain()


class ServiceChat:
    """A `Scorer`: a client of a service on this machine; it works in one event loop at a time."""

    constrains = True

    def __init__(self, name: str, announcement: str | Path):
        """Read from `announcement` where the service of the model `name` listens.

        Raises:
            UserError: the service is on another machine.
        """
        where = json.loads(Path(announcement).read_text(encoding="utf-8"))
        if where["host"] != socket.gethostname():
            raise UserError(
                f"models.{name}.service: the service runs on {where['host']}, this job on "
                f"{socket.gethostname()}; both must be in one cluster job, see profiles/README"
            )
        self._socket = where["socket"]
        self._ended = (
            f"models.{name}.service: the service ended before its jobs did; see {where['log']} for "
            "the reason, then run the same command again, it resumes here"
        )
        self._name, self._log = name, where["log"]
        self._answers: dict[int, asyncio.Future[_Answer]] = {}
        self._requests = 0
        self._conversation: asyncio.Task | None = None
        self._unsent: asyncio.Queue[bytes] = asyncio.Queue()

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Generate the model's next turn after `messages`, as `sampling` says.

        Raises:
            UserError: the service ended, or the model raised a `UserError` there.
            RuntimeError: the model failed.
        """
        completion = (await self._ask(messages, sampling=sampling)).completion
        assert completion is not None  # the service answers a `sampling` with a completion
        return completion

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> Choice:
        """Return the probability of each choice as the beginning of the next turn.

        Raises:
            UserError: two choices begin with the same token, or as `complete`.
            RuntimeError: the model failed.
        """
        choice = (await self._ask(messages, choices=tuple(choices))).choice
        assert choice is not None  # the service answers `choices` with a choice
        return choice

    async def _ask(self, messages: Sequence[Message], **fields) -> _Answer:
        loop = asyncio.get_running_loop()
        if self._conversation is None or self._conversation.get_loop() is not loop:
            self._answers, self._unsent = {}, asyncio.Queue()
            self._conversation = loop.create_task(self._converse())
        if self._conversation.done():
            raise UserError(self._ended)
        self._requests += 1
        waiting = self._answers[self._requests] = loop.create_future()
        request = _Request(self._requests, list(messages), **fields)
        try:
            self._unsent.put_nowait(msgspec.json.encode(request) + b"\n")
            answer = await waiting
        finally:
            del self._answers[request.number]
        if answer.user_error:
            raise UserError(answer.user_error)
        if answer.other_error:
            kind = ServerTrouble if answer.trouble else RuntimeError
            raise kind(f"models.{self._name}: {answer.other_error}; see {self._log}")
        return answer

    async def _converse(self) -> None:
        """Send requests and hand over answers until the service ends."""
        with suppress(ConnectionError, FileNotFoundError):
            reader, writer = await asyncio.open_unix_connection(self._socket, limit=_LONGEST_LINE)
            sending = asyncio.create_task(self._send(writer))
            try:
                while line := await reader.readline():
                    answer = _read_answer(line)
                    waiting = self._answers.get(answer.number)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(answer)
            finally:
                sending.cancel()
                writer.close()
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(UserError(self._ended))

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):  # the reader notices it, too
            while True:
                writer.write(await self._unsent.get())
                await writer.drain()
