"""A model that one process serves and many jobs on its machine share, instead of each loading it.

The service listens before it loads: jobs connect at once, and are answered when it can. It serves
the very model that a job would load for itself, so that nothing that is said depends on it. It
listens on a Unix socket in a folder of its own that only its user may enter, so that it needs
neither a port nor a key. A connection carries lines of JSON: requests with numbers, and answers in
any order. Not covered: models on other machines, for which there is the backend `openai`.
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
from agentsafe.errors import UserError
from agentsafe.inference.types import Choice, Completion, Message, Sampling, Scorer

log = logging.getLogger(__name__)

_LONGEST_LINE = 2**30  # bytes
_WAITING = 4096  # connections that wait while the model is loaded
_LOOK_EVERY = 1.0  # seconds between looks at whether anybody still wants the service


class _Asked(msgspec.Struct, omit_defaults=True):
    """A request: for a completion where there is a `sampling`, else for shares of `choices`."""

    number: int
    messages: list[Message]
    sampling: Sampling | None = None
    choices: tuple[str, ...] = ()


class _Answered(msgspec.Struct, omit_defaults=True):
    """What came of it; `mend` is what a user can mend, `defect` anything else."""

    number: int
    completion: Completion | None = None
    choice: Choice | None = None
    mend: str = ""
    defect: str = ""


_read_request = msgspec.json.Decoder(_Asked).decode
_read_answer = msgspec.json.Decoder(_Answered).decode


@contextmanager
def listening(announcement: str | Path, log_file: str | Path) -> Iterator[socket.socket]:
    """A socket that jobs can connect to, announced by a file, until the block ends.

    Args:
        announcement: appears whole, says where to connect, and goes at the end.
        log_file: of the service; jobs name it where the service fails them.

    Raises:
        UserError: the folder for temporary files has too long a name for a socket.
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
                    f"{path}: too long a name for a socket; set TMPDIR to a shorter folder"
                ) from None
            listener.listen(_WAITING)
            where = {"socket": path, "host": socket.gethostname(), "log": str(log_file)}
            with whole_file(announcement) as partial:
                partial.write_text(json.dumps(where) + "\n", encoding="utf-8")
            try:
                yield listener
            finally:
                Path(announcement).unlink(missing_ok=True)


def serve(model: Scorer, listener: socket.socket, announcement: str | Path) -> None:
    """Answer all that connect, until SIGTERM or until nobody wants the service.

    Nobody does where the announcement is gone, or the process that started this one.

    Args:
        model: who answers; it is asked for one token first.
        listener: as `listening` gives it.
        announcement: its file.

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
            await asyncio.wait_for(stopped.wait(), _LOOK_EVERY)
    server.close()
    for task in list(connections):
        task.cancel()
    await asyncio.gather(*connections, return_exceptions=True)
    log.info("ended: nobody needs it any more")


async def _converse(
    model: Scorer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer one job; what it asked for is dropped when it goes."""
    try:
        async with asyncio.TaskGroup() as requests:
            under_way: set[asyncio.Task] = set()
            while line := await reader.readline():
                task = requests.create_task(_answer(model, _read_request(line), writer))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            for task in under_way:
                task.cancel()
    except* ConnectionError:
        log.info("a job went before its answer")
    finally:
        writer.close()


async def _answer(model: Scorer, asked: _Asked, writer: asyncio.StreamWriter) -> None:
    answer = _Answered(asked.number)
    try:
        if asked.sampling is not None:
            answer.completion = await model.complete(asked.messages, asked.sampling)
        else:
            answer.choice = await model.choose(asked.messages, asked.choices)
    except UserError as error:
        answer.mend = str(error)
    except Exception as error:
        log.exception("a request failed")
        answer.defect = f"{type(error).__name__}: {error}"
    writer.write(msgspec.json.encode(answer) + b"\n")
    await writer.drain()


class ServiceChat:
    """A `Scorer`: a model that a service on this machine serves, in one event loop at a time."""

    constrains = True

    def __init__(self, name: str, announcement: str | Path):
        """Get ready to ask the service that `announcement` tells of for the model `name`.

        Raises:
            UserError: it is on another machine.
        """
        where = json.loads(Path(announcement).read_text(encoding="utf-8"))
        if where["host"] != socket.gethostname():
            raise UserError(
                f"models.{name}.service: it runs on {where['host']}, this job on "
                f"{socket.gethostname()}; both must be one job of the cluster, see profiles/README"
            )
        self._socket = where["socket"]
        self._ended = (
            f"models.{name}.service: it ended before its jobs did; see why in {where['log']}, then "
            "run the same command again, it goes on from here"
        )
        self._name, self._log = name, where["log"]
        self._answers: dict[int, asyncio.Future[_Answered]] = {}
        self._asked = 0
        self._conversation: asyncio.Task | None = None
        self._unsent: asyncio.Queue[bytes] = asyncio.Queue()

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The model's next turn after `messages`; see `agentsafe.inference.types.Sampling`.

        Raises:
            UserError: the service ended, or the model refuses, as in this process.
            RuntimeError: the model failed.
        """
        return (await self._ask(messages, sampling=sampling)).completion

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> Choice:
        """How likely each choice is as the beginning of the next turn.

        Raises:
            UserError: two choices begin with the same token, or as `complete`.
            RuntimeError: the model failed.
        """
        return (await self._ask(messages, choices=tuple(choices))).choice

    async def _ask(self, messages: Sequence[Message], **what) -> _Answered:
        loop = asyncio.get_running_loop()
        if self._conversation is None or self._conversation.get_loop() is not loop:
            self._answers, self._unsent = {}, asyncio.Queue()
            self._conversation = loop.create_task(self._converse())
        if self._conversation.done():
            raise UserError(self._ended)
        self._asked += 1
        answer = self._answers[self._asked] = loop.create_future()
        asked = _Asked(self._asked, list(messages), **what)
        try:
            self._unsent.put_nowait(msgspec.json.encode(asked) + b"\n")
            answered = await answer
        finally:
            del self._answers[asked.number]
        if answered.mend:
            raise UserError(answered.mend)
        if answered.defect:
            raise RuntimeError(f"models.{self._name}: {answered.defect}; see {self._log}")
        return answered

    async def _converse(self) -> None:
        """Send what is asked and hand over what is answered, until the service ends."""
        with suppress(ConnectionError, FileNotFoundError):
            reader, writer = await asyncio.open_unix_connection(self._socket, limit=_LONGEST_LINE)
            sending = asyncio.create_task(self._send(writer))
            try:
                while line := await reader.readline():
                    answered = _read_answer(line)
                    answer = self._answers.get(answered.number)
                    if answer is not None and not answer.done():
                        answer.set_result(answered)
            finally:
                sending.cancel()
                writer.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(UserError(self._ended))

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):  # which the reader notices, too
            while True:
                writer.write(await self._unsent.get())
                await writer.drain()
