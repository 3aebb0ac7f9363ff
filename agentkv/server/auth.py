"""Who asks: API keys and the tenant that is derived from them.

A tenant stands at the root of every key under which KV is kept, so it must be nothing that a caller can choose or
guess: the timing of cache hits would tell one user what another has asked (CVE-2025-46570). It is an HMAC of the API
key with a secret salt: drawn when the process starts, unless servers that share kept KV are given one.
"""

import hmac
import secrets

from fastapi import Request

from agentkv.server.errors import ApiError


class Authenticator:
    """Checks the bearer token and names the tenant; a FastAPI dependency.

    Args:
        api_keys: those that are let in; none lets everybody in, as one tenant.
        salt: secret; None draws one.
    """

    def __init__(self, api_keys: tuple[str, ...], salt: bytes | None = None) -> None:
        self._salt = salt or secrets.token_bytes(32)
        self._tenants = tuple(self._hash(key.encode("utf-8")) for key in api_keys)

    async def __call__(self, request: Request) -> str:
        """The caller's tenant, empty where no keys are set.

        Raises:
            ApiError: 401, no key or one that is not known.
        """
        if not self._tenants:
            return ""
        key = _key_of(request)
        if not key:
            raise self._refused("no API key was given: send it as `Authorization: Bearer KEY`")
        tenant = self._hash(key.encode("latin-1"))  # headers are bytes, decoded as latin-1
        # All are compared, each in constant time: neither place nor prefix of a key can be timed.
        if sum(hmac.compare_digest(tenant, known) for known in self._tenants) == 0:
            raise self._refused("the API key is not known to this server")
        return tenant

    def _hash(self, key: bytes) -> str:
        return hmac.digest(self._salt, key, "sha256").hex()

    @staticmethod
    def _refused(message: str) -> ApiError:
        return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


class MetricsAuthenticator:
    """Lets those in who may see the figures of all keys; a FastAPI dependency.

    Args:
        caller: names the tenant of an API key.
        num_tenants: how many there are; where there is but one, all figures are its own.
        metrics_key: of operators; it opens nothing else. None: several tenants may not see each other's figures.
    """

    def __init__(self, caller: Authenticator, num_tenants: int, metrics_key: str | None) -> None:
        self._caller = caller
        self._num_tenants = num_tenants
        self._operator = None if metrics_key is None else Authenticator((metrics_key,))

    async def __call__(self, request: Request) -> None:
        """Pass, or not.

        Raises:
            ApiError: 401 without the key, 403 where nobody may see them.
        """
        if self._operator is not None:
            await self._operator(request)
            return
        await self._caller(request)
        if self._num_tenants > 1:
            message = "metrics show the figures of all API keys: set metrics_key on the server, and send that one"
            raise ApiError(403, message, code="forbidden")


def _key_of(request: Request) -> str:
    """The key as OpenAI's clients send it, or as Anthropic's do; empty where there is none."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "").strip()
