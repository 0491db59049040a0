"""A small server with every fault that real ones have, in plain asyncio, on a thread of its own.

`behave(body, number)` decides what becomes of the request with that number (from 0): an `Reply`, built by the
functions below.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    """What goes over the wire: status, headers and body, in how many pieces, and whether all of it is sent."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay: float = 0.0
    drop_after: int | None = None  # close the connection after so many bytes of the body; -1: before the status
    drip: float = 0.0  # seconds between single bytes of the body


def says(text: str | None, **message: Any) -> Reply:
    """A whole answer with this text."""
    finish = message.pop("finish_reason", "stop")
    delay = message.pop("delay", 0.0)
    said = {"role": "assistant", "content": text, **message}
    body = {
        "id": "chat-1",
        "object": "chat.completion",
        "model": "served-model",
        "choices": [{"index": 0, "finish_reason": finish, "message": said}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19},
    }
    return Reply(body=json.dumps(body).encode(), delay=delay)


def fails(status: int, message: str = "no", **headers: str) -> Reply:
    """An error in the form of the API."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, named, json.dumps({"error": {"message": message}}).encode())


def right(body, number):
    question = body["messages"][-1]["content"]
    return says(f"{question} We add {body['seed']}.\nThe answer is 4.")


@dataclass
class Seen:
    """One request as it came in."""

    body: dict[str, Any]
    headers: dict[str, str]
    at: float


class Server:
    """Starts on a free port of 127.0.0.1; `seen` holds every request."""

    def __init__(self, behave: Callable[[dict[str, Any], int], Reply]) -> None:
        self.behave = behave
        self.seen: list[Seen] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
                body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
                self.seen.append(Seen(body, headers, self._loop.time()))
                if not await self._reply(self.behave(body, len(self.seen) - 1), writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _reply(self, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        if reply.delay:
            await asyncio.sleep(reply.delay)
        if reply.drop_after == -1:
            return False
        headers = {"Content-Type": "application/json", **reply.headers, "Content-Length": str(len(reply.body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {reply.status} Reply\r\n{lines}\r\n".encode())
        body = reply.body if reply.drop_after is None else reply.body[: reply.drop_after]
        if reply.drip:
            for byte in body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(reply.drip)
        else:
            writer.write(body)
        await writer.drain()
        return reply.drop_after is None


def questions(server):
    """What the server was asked, without the preflight."""
    asked = [seen.body["messages"][-1]["content"] for seen in server.seen]
    return [question for question in asked if "problem" in question]
