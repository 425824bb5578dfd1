"""Let a server of a base model play that model's trained lineages, by their LoRA adapters.

vLLM loads an adapter at runtime (`POST /v1/load_lora_adapter`) and serves it under a name of its
own, in one batch with the base and its other adapters. A job loads the adapter that it needs if no
other job has done so. The job that uses it last unloads it; where that cannot be known, as on a
file system without locks, the adapter stays registered, and the server drops the weights of the
least recently used ones itself.

Run against vLLM 0.30.0 on a CPU; the project's tests run a small imitation of it.
"""

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import openai

from agentsafe._util.hashing import key_of
from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.inference.lora_parts import write_parts
from agentsafe.inference.openai_refusals import read_refusal
from agentsafe.models import checkpoint
from agentsafe.models.checkpoint import ADAPTER_CONFIG, fingerprint

log = logging.getLogger(__name__)

_START = "start it as 'make serve' says"
_REFUSED_KEY = "refuses the key (status {}): check api_key_env and the key in that variable"
_RANK = re.compile(r"LoRA rank (\d+) is greater than max_lora_rank (\d+)", re.IGNORECASE)
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")
_PASSING = 408, 409, 425, 429, 502, 503, 504  # statuses of refusals that may pass
_GOODBYE = 10.0  # seconds that a server has to unload an adapter, when nothing waits for it


@dataclass(frozen=True)
class Adapter:
    """An adapter that a server is to load.

    Attributes:
        name: the server's name for it: that of the lineage, and a digest of the adapter's content
            and place, so that no two runs on one server share a name.
        folder: absolute; the server reads it.
    """

    name: str
    folder: Path


@dataclass(frozen=True)
class Server:
    """The server of a base, as messages name it.

    Attributes:
        key: the place of the model in the config, for messages.
        host: with the port.
        base: the server's name of the base.
        commit: of the base on the hub, None where it does not come from there.
        secret: the server's key, which messages must not show even where the server repeats it.
    """

    key: str
    host: str
    base: str
    commit: str | None = None
    secret: str | None = field(default=None, repr=False)

    def error(self, problem: str) -> UserError:
        """Build the error for what is wrong with the server."""
        text = f"{self.key}: {self.host} {problem}"
        return UserError(text.replace(self.secret, "[key]") if self.secret else text)


def adapter_of(lineage: str, folder: str | Path) -> Adapter:
    """Describe the adapter of a trained checkpoint.

    Args:
        lineage: its name.
        folder: of the checkpoint.

    Raises:
        UserError: the checkpoint is no adapter, or it is broken or one of another base.
    """
    folder = Path(folder).resolve()
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{folder}: holds whole weights, which a server of the base cannot load: train it "
            "again with 'training.tuning: lora', or leave 'lora' out of its model"
        )
    checkpoint.check_adapter(folder)
    if checkpoint.base_folder(folder) != folder:
        checkpoint.check_base(folder)
    digest = key_of(fingerprint(folder), str(folder))[:12]
    return Adapter(f"{lineage}-{digest}", folder)


async def prepare(client: openai.AsyncOpenAI, server: Server, adapter: Adapter | None) -> None:
    """Check a server's base, and load an adapter unless it is there.

    An adapter gets its name on the server only after a check that the server applies it, so that
    no other job finds it before.

    Args:
        client: of the server.
        server: that server.
        adapter: to load; None for the base alone.

    Raises:
        UserError: the server has another base, or does not load the adapter for a reason that
            stays; the line says how to fix it.
        openai.APIError: the server fails for a reason that may pass.
    """
    served = await _served(client, server)
    check_base(served, server)
    if adapter is None or adapter.name in served:
        return
    await _check_effect(client, server, adapter)
    refusal = await _load(client, adapter)
    if refusal is None or _is_loaded(refusal):
        log.info("%s: %s is loaded on %s", server.key, adapter.name, server.host)
    else:
        _check_refusal(refusal, server, adapter)
        other = f"does not load {adapter.folder}: status {refusal.status_code}"
        raise server.error(f"{other} ({_message(refusal)})")


async def _check_effect(client: openai.AsyncOpenAI, server: Server, adapter: Adapter) -> None:
    """Check that a server applies an adapter to each kind of layer that it adapts.

    vLLM refuses an adapter of layers that it has no LoRA for, but it leaves out, with a line in its
    debug log, those that have other names in its own form of the model, or that its
    `--lora-target-modules` lacks: the base would answer in the lineage's name.
    """
    before, without = await _next_token(client, server.base), []
    if before is None:
        log.warning("%s: %s tells no log-probabilities to check by", server.key, server.host)
        return
    with TemporaryDirectory(dir=adapter.folder.parent, prefix=".effect-") as made:
        os.chmod(made, 0o755)
        for part in write_parts(adapter.folder, Path(made)):
            tried = Adapter(f"{adapter.name}-{Path(made).name}-{part.kind}", part.folder.resolve())
            if refusal := await _load(client, tried):
                _check_refusal(refusal, server, adapter)
                log.warning("%s: %s unchecked: %s", server.key, part.kind, _message(refusal))
                continue
            if await _next_token(client, tried.name) == before:
                without.append(part.kind)
            await _unload(client, tried)
    if without:
        raise server.error(
            f"loads {adapter.folder}, but does not apply it to {', '.join(without)}: play it here "
            f"({server.key}.backend: transformers), or train other layers "
            "(training.lora.target_modules)"
        )


async def _next_token(client: openai.AsyncOpenAI, model: str) -> list[tuple[str, float]] | None:
    """Request a text's likeliest next tokens and their log-probabilities; None without an answer.

    A server also refuses to answer with NaN, which weights a thousand times as strong may give.
    """
    asked = [{"role": "user", "content": "Hello."}]
    body = {"model": model, "messages": asked, "max_tokens": 1, "temperature": 0}
    body |= {"logprobs": True, "top_logprobs": 20}
    try:
        answer = json.loads(await client.post("/chat/completions", body=body, cast_to=str))
        likeliest = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return [(each["token"], each["logprob"]) for each in likeliest]
    except openai.APIStatusError as error:
        if error.status_code in _PASSING:
            raise
    except (ValueError, RecursionError, LookupError, TypeError):
        pass  # not an answer with log-probabilities
    return None


async def _load(client: openai.AsyncOpenAI, adapter: Adapter) -> openai.APIStatusError | None:
    """Have an adapter loaded; return the refusal if there is one."""
    body = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
    try:
        await client.post("/load_lora_adapter", body=body, cast_to=str)
    except openai.APIStatusError as error:
        return error
    return None


async def _unload(client: openai.AsyncOpenAI, adapter: Adapter) -> None:
    """Have an adapter unloaded; one that stays costs its name."""
    with suppress(openai.APIStatusError):
        await client.post("/unload_lora_adapter", body={"lora_name": adapter.name}, cast_to=str)


def _check_refusal(refusal: openai.APIStatusError, server: Server, adapter: Adapter) -> None:
    """Raise for a refusal that may pass, and for one whose reason is known."""
    if refusal.status_code in _PASSING:
        raise refusal
    if problem := _known_problem(refusal, adapter):
        raise server.error(problem)


def check_base(served: Mapping[str, Mapping[str, Any]], server: Server) -> str | None:
    """Check that a server has the base that the config names.

    A server tells the revision of its base by a second name, `BASE@COMMIT`, as `make serve` starts
    it, or by the folder of the hub's cache that it has loaded.

    Args:
        served: what `/v1/models` lists, by name.
        server: that server.

    Returns:
        The commit that the server tells; None if it tells none.

    Raises:
        UserError: the server has another model or another revision of it.
    """
    bases = {name: entry for name, entry in served.items() if not entry.get("parent")}
    if server.base not in bases:
        raise server.error(
            f"serves {', '.join(sorted(bases)) or 'no model'}, not {server.base}: {_START}, or "
            f"correct the address or {server.key}.model"
        )
    alias = f"{server.base}@"
    told = {name.removeprefix(alias) for name in bases if name.startswith(alias)}
    root = _SNAPSHOT.search(str(bases[server.base].get("root", "")))
    told |= {root[1]} if root else set()
    if server.commit is not None and told and server.commit not in told:
        raise server.error(
            f"serves {server.base} at {' and '.join(sorted(told))}, and this run has it at "
            f"{server.commit}: {_START}"
        )
    if server.commit is not None and not told:
        log.warning(
            "%s: %s does not tell the revision of %s, which must be %s",
            *(server.key, server.host, server.base, server.commit),
        )
    return min(told, default=None)


async def try_server(
    client: openai.AsyncOpenAI, server: Server, rank: int, folder: Path
) -> str | None:
    """Check before a run that a server can load its adapters, with one that has only a config.

    vLLM reads the config, and so the rank, before it misses the weights.

    Args:
        client: of the server.
        server: that server.
        rank: of the largest adapter that the run makes.
        folder: of the run's results, where its adapters will be.

    Returns:
        The commit of the base that the server tells; None if it tells none.

    Raises:
        UserError: the server cannot; the line says how to fix it.
        openai.APIError: the server fails for a reason that may pass.
    """
    told = check_base(await _served(client, server), server)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".preflight-") as made:
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
        Path(made, ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
        os.chmod(made, 0o755)  # else only this user's processes may read it
        adapter = Adapter(Path(made).name, Path(made).resolve())
        if refusal := await _load(client, adapter):
            _check_refusal(refusal, server, adapter)
        else:  # a server that reads the weights when they are first needed
            await _unload(client, adapter)
    return told


def _known_problem(refusal: openai.APIStatusError, adapter: Adapter) -> str | None:
    """Say why a server loads no such adapter and how to fix it; None for any other refusal."""
    status, message = refusal.status_code, _message(refusal)
    if rank := _RANK.search(message):
        return (
            f"loads adapters up to rank {rank[2]}, and this run makes them of rank {rank[1]}: "
            "start it with the --max-lora-rank that 'make serve' prints"
        )
    if status == 404 and "no adapter found" in message.lower():
        return (
            f"does not see {adapter.folder}: start it where that folder has the same path, such as "
            "on a file system that both machines share"
        )
    if status in (404, 405):
        return (
            "does not load adapters at runtime: start it with --enable-lora and "
            f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or {_START}"
        )
    if "lora is not enabled" in message.lower():
        return f"serves no adapters: start it with --enable-lora, or {_START}"
    if status in (401, 403):
        return _REFUSED_KEY.format(status)
    return None


def _message(refusal: openai.APIStatusError) -> str:
    return one_line(read_refusal(refusal.status_code, _body(refusal), 0).message)[:300]


def _is_loaded(refusal: openai.APIStatusError) -> bool:
    """Tell whether a server refuses an adapter because another job has just loaded it."""
    return refusal.status_code == 400 and "already been loaded" in str(_body(refusal))


def _body(refusal: openai.APIStatusError) -> Any:
    try:
        return json.loads(refusal.response.content)
    except (ValueError, RecursionError):
        return refusal.response.text


async def _served(client: openai.AsyncOpenAI, server: Server) -> dict[str, Mapping[str, Any]]:
    """Request the models of a server by their names; none where it sends no list of models."""
    refusal, listed = None, ""
    try:
        listed = await client.get("/models", cast_to=str)
    except openai.APIStatusError as error:
        if error.status_code in _PASSING or error.status_code >= 500:
            raise
        refusal = error
    if refusal is not None and refusal.status_code in (401, 403):
        raise server.error(_REFUSED_KEY.format(refusal.status_code))
    if refusal is not None:
        raise server.error(f"does not list its models (status {refusal.status_code}): {_START}")
    try:
        entries = json.loads(listed)["data"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return {}
    known: Iterable[Any] = entries if isinstance(entries, list) else ()
    return {str(each["id"]): each for each in known if isinstance(each, Mapping) and "id" in each}


def begin_use(adapter: Adapter) -> IO | None:
    """Record that this process uses an adapter, for all jobs that see its folder.

    Returns:
        What `end_use` takes; None where the file system has no locks.
    """
    try:
        lock = (adapter.folder / ADAPTER_CONFIG).open("r+b")  # NFS locks only what can be written
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits while another job unloads
    except OSError:
        lock.close()
        return None
    return lock


def end_use(lock: IO, adapter: Adapter, url: str, key: str) -> None:
    """Unload an adapter from the server at `url` if no other job uses it."""
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        try:
            with openai.OpenAI(
                api_key=key, base_url=url, timeout=_GOODBYE, max_retries=0
            ) as client:
                gone = {"lora_name": adapter.name}
                client.post("/unload_lora_adapter", body=gone, cast_to=str)
        except openai.APIError as error:  # the server has ended, or drops it when it needs the room
            log.info("%s was not unloaded: %s", adapter.name, type(error).__name__)
