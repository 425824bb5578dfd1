"""A chat server on loopback: it speaks OpenAI's protocol for any `ChatModel`, and fails on purpose.

    with serve(model, key="secret", faults=shares(0, busy=0.2, reset=0.1)) as server:
        os.environ["CHAT_URL"] = server.url
        ...
    assert server.most_at_once <= 8

It is real HTTP/1.1 with connections that are kept, so that another process can use it, too. All
requests are answered in one event loop, where they share the model's batches.
"""

import asyncio
import hashlib
import json
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from agentsafe.inference.types import ChatModel, Completion, Sampling


@dataclass(frozen=True)
class Reply:
    """An answer to send: a dict as JSON, text as HTML."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """Make an error in OpenAI's form; `retry_after="1"` becomes the header `retry-after`."""
    error = {"message": message, "type": "error", "param": None, "code": code}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"error": error}, names)


#: Faults of a server: an answer to send, or the name of a method of the handler.
FAULTS: dict[str, Reply | str] = {
    "busy": refusal(429, "Rate limit reached", "rate_limit_exceeded", retry_after="0"),
    "broken": refusal(500, "The server had an error"),
    "overlong": refusal(
        400, "This model's maximum context length is 8 tokens.", "context_length_exceeded"
    ),
    "html": Reply(200, "<html><body>Welcome to the proxy</body></html>"),
    "empty": Reply(200, {"choices": []}),
    "reset": "reset",  # the connection, without an answer
    "half": "half",  # of a body
    "hang": "hang",  # until the client goes
    "trickle": "trickle",  # a byte now and then, for 4 seconds
}


def said(content: Any = None, finish_reason: str | None = "stop", **message: Any) -> Reply:
    """Make an answer with these fields of a message; `usage` is that of the answer."""
    usage = message.pop("usage", {"prompt_tokens": 5, "completion_tokens": 7})
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    return Reply(200, {"choices": [choice | {"finish_reason": finish_reason}], "usage": usage})


#: Chooses the fault, if any, of a try from the request's identity and the number of the try (from
#: 0), so that it does not depend on the order of the requests.
Plan = Callable[[str, int], "Reply | str | None"]


#: Chooses the answer to a request by its body; None leaves it to the plan and the model.
Rule = Callable[[Mapping[str, Any]], Reply | None]


def shares(seed: int, **share: float) -> Plan:
    """Choose faults at random: `shares(0, busy=0.2)` makes a fifth of all tries busy."""

    def plan(identity: str, attempt: int) -> str | None:
        left = random.Random(f"{seed} {identity} {attempt}").random()
        for fault, part in share.items():
            left -= part
            if left < 0:
                return fault
        return None

    return plan


def first(*faults: Reply | str) -> Plan:
    """Let the first tries of every request fail with these faults, one per try."""
    return lambda identity, attempt: faults[attempt] if attempt < len(faults) else None


def always(fault: Reply | str) -> Plan:
    """Let every try fail with the same fault."""
    return lambda identity, attempt: fault


@dataclass
class Request:
    """One try of a request for a completion, and its outcome."""

    identity: str  # a hash of the body, the same for all tries of a request
    attempt: int
    body: dict[str, Any]
    headers: dict[str, str]
    at: float  # seconds, of the monotonic clock
    fault: Reply | str | None
    answered: bool = False  # in full, with status 200


class ChatServer:
    """A server that runs, see `serve`.

    Attributes:
        url: its base URL.
        listed: what `/v1/models` tells of the model beside its name.
        requests: for completions, in the order in which they came; only those with the right key.
        most_at_once: requests that were in hand at the same time, at most. One no longer is when
            its answer begins: else the client's next would count beside it.
    """

    def __init__(
        self, model: ChatModel | None, name: str, key: str | None, faults: Plan, rule: Rule
    ):
        self.model, self.name, self.key, self.faults, self.rule = model, name, key, faults, rule
        self.listed: dict[str, Any] = {}
        self.url = ""
        self.requests: list[Request] = []
        self.most_at_once = 0
        self.closing = threading.Event()
        self.loop = asyncio.new_event_loop()
        self._at_once = 0
        self._tries: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def in_hand(self, body: dict[str, Any], headers: Mapping[str, str]) -> Iterator[Request]:
        """Record a try of a request as pending."""
        identity = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
        with self._lock:
            attempt = self._tries[identity]
            self._tries[identity] += 1
            fault = self.rule(body) or self.faults(identity, attempt)
            request = Request(identity, attempt, body, dict(headers), time.monotonic(), fault)
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield request
        finally:
            with self._lock:
                self._at_once -= 1

    def models(self) -> dict[str, ChatModel | None]:
        """Return the models that it serves, by name."""
        return {self.name: self.model}

    def cards(self) -> list[dict[str, Any]]:
        """Return what `/v1/models` lists."""
        return [{"id": self.name, "object": "model", **self.listed}]

    def post(self, path: str, body: dict[str, Any]) -> Reply | None:
        """Answer a request at any other path; None where there is nothing."""
        return None

    def likeliest(self, body: dict[str, Any]) -> Reply | None:
        """Answer a request for log-probabilities; None where there are none."""
        return None

    def complete(self, body: dict[str, Any]) -> Completion:
        """Return the model's answer to a request."""
        asked = self.models()[body["model"]].complete(body["messages"], sampling_of(body))
        return asyncio.run_coroutine_threadsafe(asked, self.loop).result()


def sampling_of(body: Mapping[str, Any]) -> Sampling:
    """Read the sampling parameters of a request."""
    stop = body.get("stop") or []
    choices = body.get("structured_outputs", {}).get("choice", [])
    if "response_format" in body:
        choices = _property(body)[1]["enum"]
    return Sampling(
        temperature=body.get("temperature", 1.0),
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens") or 16,
        seed=body.get("seed", 0),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        choices=tuple(choices),
    )


def _property(body: Mapping[str, Any]) -> tuple[str, dict]:
    """Return name and schema of the only property of the requested object."""
    [(name, schema)] = body["response_format"]["json_schema"]["schema"]["properties"].items()
    return name, schema


def answer(body: Mapping[str, Any], completion: Completion) -> Reply:
    """Build the body of a completion, without the stop string, as servers do."""
    if completion.stop_reason == "context" and not completion.completion_tokens:
        return FAULTS["overlong"]
    text = completion.text
    for stop in sampling_of(body).stop:
        text = text.partition(stop)[0]
    if "response_format" in body:
        text = json.dumps({_property(body)[0]: text})
    message = {"role": "assistant", "content": text}
    if completion.reasoning:
        message["reasoning_content"] = completion.reasoning
    reason = "stop" if completion.stop_reason == "stop" else "length"
    tokens = completion.prompt_tokens, completion.completion_tokens
    details = {}
    if completion.cached_tokens:
        details["prompt_tokens_details"] = {"cached_tokens": completion.cached_tokens}
    if completion.reasoning_tokens:
        details["completion_tokens_details"] = {"reasoning_tokens": completion.reasoning_tokens}
    return Reply(
        200,
        {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {
                "prompt_tokens": tokens[0],
                "completion_tokens": tokens[1],
                "total_tokens": sum(tokens),
                **details,
            },
        },
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body waits for the headers to be acknowledged

    def do_GET(self):
        if self._admits():
            known = self.path == "/v1/models"
            listed = {"object": "list", "data": self.server.chat.cards()}
            self._send(Reply(200, listed) if known else self._unknown())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.server.chat
        if not self._admits():
            return
        if self.path != "/v1/chat/completions":
            self._send(chat.post(self.path, body) or self._unknown())
        elif body["model"] not in chat.models():
            self._send(
                refusal(404, f"The model '{body['model']}' does not exist", "model_not_found")
            )
        elif body.get("logprobs"):
            self._send(chat.likeliest(body) or self._unknown())
        else:
            with chat.in_hand(body, self.headers) as request:
                fault = request.fault
                if fault is None:
                    reply = self._answer(body)
                else:
                    reply = FAULTS[fault] if isinstance(fault, str) else fault
            if isinstance(reply, Reply):
                self._send(reply)
                request.answered = fault is None and reply.status == 200
            else:
                self.close_connection = True
                getattr(self, f"_{reply}")()

    def _answer(self, body) -> Reply:
        try:
            return answer(body, self.server.chat.complete(body))
        except Exception as error:
            return refusal(500, f"{type(error).__name__}: {error}")

    def _admits(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.server.chat.key in (None, given):
            return True
        self._send(refusal(401, f"Incorrect API key provided: {given}.", "invalid_api_key"))
        return False

    def _unknown(self) -> Reply:
        return refusal(404, f"Not found: {self.path}")

    def _send(self, reply: Reply, whole: bool = True):
        page = isinstance(reply.body, str)
        body = (reply.body if page else json.dumps(reply.body)).encode()
        headers = {
            "Content-Type": "text/html" if page else "application/json",
            "Content-Length": str(len(body)),
            **reply.headers,
        }
        self.send_response(reply.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if whole else body[: len(body) // 2])

    def _half(self):
        said = Completion("This is cut off", "stop", 1, 1)
        self._send(answer({"model": self.server.chat.name}, said), whole=False)

    def _reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _hang(self):
        self.server.chat.closing.wait()

    def _trickle(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "200")
        self.end_headers()
        for _ in range(200):
            self.wfile.write(b" ")
            if self.server.chat.closing.wait(0.02):
                break

    def log_message(self, *arguments):
        pass


Started = TypeVar("Started", bound=ChatServer)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing the server waits for them
    request_queue_size = 256

    def __init__(self, chat: ChatServer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.chat = chat
        self._open: set[socket.socket] = set()

    def process_request(self, request, client_address):
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # raised if a client disconnects early
            super().handle_error(request, client_address)

    def hang_up(self):
        """End the connections that clients keep open."""
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@contextmanager
def serve(
    model: ChatModel | None = None,
    *,
    name: str = "tiny",
    key: str | None = None,
    faults: Plan = lambda identity, attempt: None,
    rule: Rule = lambda body: None,
) -> Iterator[ChatServer]:
    """Serve a model until the block ends.

    Args:
        model: who answers; needless where every try meets a fault.
        name: of the model, to clients.
        key: that clients must show. Who shows another is told which, as some servers do.
        faults: what goes wrong: `shares`, `first`, `always` or a function of one's own.
        rule: what the server refuses, by a request's body.
    """
    with running(ChatServer(model, name, key, faults, rule)) as chat:
        yield chat


@contextmanager
def running(chat: Started) -> Iterator[Started]:
    """Run a server until the block ends."""
    server = _Server(chat)
    chat.url = f"http://127.0.0.1:{server.server_port}/v1"
    threads = [
        threading.Thread(target=chat.loop.run_forever),
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}),
    ]
    for thread in threads:
        thread.start()
    try:
        yield chat
    finally:
        chat.closing.set()
        server.shutdown()
        _cancel_all(chat.loop)
        server.hang_up()
        server.server_close()
        chat.loop.call_soon_threadsafe(chat.loop.stop)
        for thread in threads:
            thread.join()
        chat.loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop):
    """Cancel all tasks that are still running."""

    async def cancel():
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(cancel(), loop).result()
