"""Who asks: API keys and the tenant that is derived from them.

A tenant stands at the root of every key under which KV is kept, so it must be nothing that a caller can choose or
guess: the timing of cache hits would tell one user what another has asked (CVE-2025-46570). It is a keyed hash of the
API key with a salt that is drawn when the process starts.
"""

import hashlib
import hmac
import secrets

from fastapi import Request

from agentkv.server.errors import ApiError


class Authenticator:
    """Checks the bearer token and names the tenant; a FastAPI dependency."""

    def __init__(self, api_keys: tuple[str, ...]) -> None:
        self._salt = secrets.token_bytes(32)
        self._tenants = tuple(self._hash(key.encode("utf-8")) for key in api_keys)

    async def __call__(self, request: Request) -> str:
        """The caller's tenant, empty where no keys are set.

        Raises:
            ApiError: 401, no key or one that is not known.
        """
        if not self._tenants:
            return ""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise self._refused("no API key was given: send it as `Authorization: Bearer KEY`")
        tenant = self._hash(key.strip().encode("latin-1"))  # headers are bytes, decoded as latin-1
        # All are compared, each in constant time: neither place nor prefix of a key can be timed.
        if sum(hmac.compare_digest(tenant, known) for known in self._tenants) == 0:
            raise self._refused("the API key is not known to this server")
        return tenant

    def _hash(self, key: bytes) -> str:
        return hashlib.blake2b(key, key=self._salt, digest_size=16).hexdigest()

    @staticmethod
    def _refused(message: str) -> ApiError:
        return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
