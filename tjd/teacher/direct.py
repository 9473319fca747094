"""Speak OpenAI's protocol to a server whose address the environment gives: litellm's request at a fraction of its cost.

In: the arguments of `litellm.acompletion`. Out: its reply, `litellm.ModelResponse`. What litellm knows of a model's
parameters (one wants `max_completion_tokens`, another takes no temperature) is asked of litellm.
"""

import asyncio
import atexit
import json
import os
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PROVIDERS = ("openai", "hosted_vllm")
LONGEST_BODY = 16 * 2**20  # bytes
LONGEST_SAID = 2000  # bytes; far more than is shown, since half a key at the cut would not be known as one
NO_PARAMETERS = ("model", "messages", "timeout", "num_retries", "max_retries")  # of the model
ACCOUNT = {  # headers that OpenAI's client takes from the environment
    "OPENAI_ORGANIZATION": "OpenAI-Organization",
    "OPENAI_ORG_ID": "OpenAI-Organization",
    "OPENAI_PROJECT_ID": "OpenAI-Project",
}


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, said: str, response: Any) -> None:
        super().__init__(said)
        self.status_code, self.response = response.status, response


def serves(litellm: Any, name: str, provider: str, base: str) -> bool:
    """Whether a model can be asked without litellm, which also knows proxies, odd certificates and other protocols."""
    if provider not in PROVIDERS or "SSL_VERIFY" in os.environ:
        return False
    address = urlsplit(base)
    if {address.scheme, "all"} & getproxies().keys() and not proxy_bypass(address.netloc):
        return False
    return litellm.model_cost.get(litellm.get_llm_provider(name)[0], {}).get("mode", "chat") == "chat"


class Direct:
    """Sends chat completions to one server."""

    def __init__(self, litellm: Any, name: str, provider: str, base: str) -> None:
        """Calls nothing."""
        self._litellm, self._provider = litellm, provider
        self._model = litellm.get_llm_provider(name)[0]
        self._url = f"{base}/chat/completions"
        self._headers = {"Content-Type": "application/json"}
        if key := os.environ.get(f"{provider.upper()}_API_KEY"):
            self._headers["Authorization"] = f"Bearer {key}"
        if provider == "openai":
            self._headers |= {header: os.environ[name] for name, header in ACCOUNT.items() if os.environ.get(name)}

    async def __call__(self, **arguments: Any) -> Any:
        """See `litellm.acompletion`; the caller bounds the time.

        Raises:
            Refused: The server answered with an error.
            ValueError: The reply is no completion, or longer than LONGEST_BODY.
            aiohttp.ClientError: The connection broke.
        """
        parameters = {name: value for name, value in arguments.items() if name not in NO_PARAMETERS}
        mapped = self._litellm.get_optional_params(model=self._model, custom_llm_provider=self._provider, **parameters)
        extra = mapped.pop("extra_body", None) or {}
        body = json.dumps({"model": self._model, "messages": arguments["messages"], **mapped, **extra}).encode()
        async with _session().post(self._url, data=body, headers=self._headers) as response:
            raw = await _bounded(response)
        if response.status != 200:
            raise Refused(_said(raw) or response.reason, response)
        reply = json.loads(raw)
        if not isinstance(reply, dict) or not reply.get("choices"):
            raise ValueError(f"the reply has no choices: {_said(raw)}")
        completion = self._litellm.ModelResponse(**reply)
        completion._response_headers = dict(response.headers)  # where litellm keeps them
        return completion


async def _bounded(response: Any) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > LONGEST_BODY:
            raise ValueError(f"the reply is longer than {LONGEST_BODY // 2**20} MiB")
    return bytes(body)


def _said(raw: bytes) -> str:
    """The message of an error in OpenAI's form, or else how the body begins."""
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return raw[:LONGEST_SAID].decode("utf-8", "replace")


@cache
def _session() -> Any:
    """One for the process, as there is one event loop: connections outlive a teacher."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)  # the caller bounds the calls in flight
    session = aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(), cookie_jar=aiohttp.DummyCookieJar()
    )
    loop = asyncio.get_running_loop()
    atexit.register(lambda: asyncio.run_coroutine_threadsafe(session.close(), loop).result(1))
    return session
