"""How a process asks servers: in one event loop, in a thread of its own so that callers may have a loop themselves,
and by one client for each server, whose connections are used again. To make a client takes longer than most requests.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")
_IDLE = 1.0  # seconds that a connection is kept; one that a server closes as it is used again costs a retry
_lock = threading.Lock()


def start_asking(asking: Coroutine[Any, Any, T]) -> Future[T]:
    """Run this beside the caller. To cancel the future closes its request."""
    with _lock:
        loop = _loop()
    return asyncio.run_coroutine_threadsafe(asking, loop)


def client_of(url: str, key: str | None, timeout: float, retries: int) -> Any:
    """The client of a server, for what is given to `start_asking`. Raises ValueError where its package is missing."""
    with _lock:
        return _client(url, key, timeout, retries)


@lru_cache(maxsize=32)
def slots_of(url: str, count: int) -> asyncio.Semaphore:
    """For so many requests under way at once, whoever asks them. To be awaited in what is given to `start_asking`."""
    return asyncio.Semaphore(count)


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="bontune-ask", daemon=True).start()
    return loop


@lru_cache(maxsize=32)
def _client(url: str, key: str | None, timeout: float, retries: int) -> Any:
    try:
        from openai import DEFAULT_CONNECTION_LIMITS, AsyncOpenAI, DefaultAsyncHttpxClient
    except ImportError as fault:
        raise ValueError(
            "asking a server needs the openai package: pip install 'bontune[endpoint]'"
        ) from fault
    limits = type(DEFAULT_CONNECTION_LIMITS)(max_connections=None, keepalive_expiry=_IDLE)  # httpx or httpx2
    connections = DefaultAsyncHttpxClient(limits=limits)
    return AsyncOpenAI(
        base_url=url, api_key=key or "none", timeout=timeout, max_retries=retries, http_client=connections
    )


def _forget() -> None:
    """A forked process has neither the thread nor the connections."""
    global _lock
    _lock = threading.Lock()
    _loop.cache_clear()
    _client.cache_clear()
    slots_of.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
