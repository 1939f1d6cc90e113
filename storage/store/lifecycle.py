"""A lifecycle rule of the bucket that aborts unfinished uploads under our prefix.

The server aborts the uploads that it knows of; the rule aborts those of a server that never starts
again. S3 replaces all rules of a bucket at once, and rules of others are never touched: where there
are any, ours is not set, and their owner may add it.
"""

from __future__ import annotations

from typing import Any

from runtime.errors import AccessDenied, NotFound, StorageError, Unavailable
from storage.store.s3 import S3Store

DAYS = 1
_OURS = "rengo-unfinished-uploads"


def rules(store: S3Store) -> list[dict[str, Any]]:
    """Return the bucket's rules.

    Raises:
        Unavailable, AccessDenied, StorageError: the store does not tell them, and why.
    """
    try:
        with store.errors("GET LIFECYCLE"):
            answer = store.client.get_bucket_lifecycle_configuration(Bucket=store.settings.bucket)
    except NotFound:
        return []
    return [dict(rule) for rule in answer.get("Rules", [])]


def ensure_rule(store: S3Store) -> str:
    """Set the rule where no other rule exists, and return what was done, for a log.

    A store without lifecycle rules, or a key that may not set them, is no error.

    Raises:
        Unavailable: the store cannot be reached.
    """
    wanted = _rule(store)
    try:
        known = rules(store)
        if any(_same(rule, wanted) for rule in known):
            return "unfinished uploads end after a day by the bucket's rule"
        if not all(str(rule.get("ID", "")).startswith(_OURS) for rule in known):
            return (
                "the bucket has lifecycle rules of its own, which stay as they are; consider one "
                f"that aborts unfinished uploads under '{store.settings.root}' after a day"
            )
        _put(store, [rule for rule in known if rule["ID"] != wanted["ID"]] + [wanted])
    except Unavailable:
        raise
    except AccessDenied:
        return "the key may not see or set the bucket's lifecycle rules: none was set"
    except StorageError:
        return "the store takes no lifecycle rules: none was set"
    return "the bucket's rule that ends unfinished uploads after a day was set"


def rule_is_set(store: S3Store) -> bool:
    """Return whether our rule is set; raises as :func:`rules` does."""
    wanted = _rule(store)
    return any(_same(rule, wanted) for rule in rules(store))


def remove_rule(store: S3Store) -> None:
    """Remove our rule and no other."""
    wanted = _rule(store)["ID"]
    rest = [rule for rule in rules(store) if rule.get("ID") != wanted]
    if rest:
        _put(store, rest)
        return
    with store.errors("DELETE LIFECYCLE"):
        store.client.delete_bucket_lifecycle(Bucket=store.settings.bucket)


def _rule(store: S3Store) -> dict[str, Any]:
    name = store.settings.prefix.replace("/", ".")
    return {
        "ID": f"{_OURS}-{name}" if name else _OURS,
        "Status": "Enabled",
        "Filter": {"Prefix": store.settings.root},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": DAYS},
    }


def _same(rule: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(rule.get(name) == value for name, value in wanted.items())


def _put(store: S3Store, wanted: list[dict[str, Any]]) -> None:
    configuration: Any = {"Rules": wanted}
    with store.errors("PUT LIFECYCLE"):
        store.client.put_bucket_lifecycle_configuration(
            Bucket=store.settings.bucket, LifecycleConfiguration=configuration
        )
