"""A loopback server that answers every chat completion after a fixed time, and writes down what it answered.

    python benchmarks/stub_server.py SECONDS LOG

It prints its port. Each line of LOG is `question, tab, seed, tab, time of the answer`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

ANSWER = {
    "id": "chat-1",
    "object": "chat.completion",
    "model": "stub",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None}}],
    "usage": {"prompt_tokens": 60, "completion_tokens": 120, "total_tokens": 180},
}
TEXT = "First we add the two numbers.\n" * 16 + "For {question} that is 4.\nThe answer is 4."


async def serve(seconds: float, log_path: Path) -> None:
    with log_path.open("a", buffering=1) as log:

        async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    at = head.lower().index(b"content-length:") + 15
                    body = json.loads(await reader.readexactly(int(head[at : head.index(b"\r", at)])))
                    if seconds:
                        await asyncio.sleep(seconds)
                    question = body["messages"][-1]["content"]
                    ANSWER["choices"][0]["message"]["content"] = TEXT.format(question=question)
                    answer = json.dumps(ANSWER).encode()
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
                        + answer
                    )
                    await writer.drain()
                    log.write(f"{question}\t{body['seed']}\t{time.time()}\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(connection, "127.0.0.1", 0, backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]), Path(sys.argv[2])))
