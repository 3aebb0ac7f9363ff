"""Whose KV it is: the tenant, narrowed by a salt of the caller's. It stands at the root of every key."""

_SEPARATOR = "\x1f"


def owner_of(tenant: str, cache_salt: str) -> str:
    """The owner of a chat's KV. Different pairs have different owners: the tenant's length comes first."""
    return f"{len(tenant)}{_SEPARATOR}{tenant}{_SEPARATOR}{cache_salt}"


def tenant_of(owner: str) -> str:
    """The tenant behind an owner, whatever the salt."""
    length, _, rest = owner.partition(_SEPARATOR)
    return rest[: int(length)]
