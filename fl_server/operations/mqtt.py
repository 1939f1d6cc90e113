"""The adapter of operations to MQTT: requests come as messages, and a message has a limit.

A result that is one document is cut to what fits. A list is sent in pages: the reply's ``next``,
where it is not there is no more, is what the client sends as ``after`` among the arguments, with
the same request id.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from broker.wire.messages import OperatorReply, OperatorRequest
from fl_server.faults import Faults
from fl_server.operations.call import Caller, Outcome
from fl_server.operations.paging import AFTER, NEXT
from fl_server.operations.requests import RequestKey
from fl_server.operations.results.base import Listing, OperationResult, encoded_bytes
from fl_server.operations.submission import Operations

PAGE_BYTES = 150_000
ROW_BYTES = 16_000
# of a message of 256 KiB: what surrounds a result has room beside it
RESULT_BYTES = 240_000
_LISTINGS_KEPT = 4
_PLACE = re.compile(r"[0-9]{1,9}:[^\n]{1,256}")
_USAGE, _FAILED = 2, 3


class OperatorEndpoint:
    """Answers every request by one reply, now or when its operation has ended.

    Args:
        reply: publishes a reply to an operator.
        faults: has the errors that nobody foresaw.
    """

    def __init__(
        self,
        operations: Operations,
        reply: Callable[[str, OperatorReply], None],
        faults: Faults | None = None,
    ) -> None:
        self._operations = operations
        self._reply = reply
        self._faults = faults or Faults()
        self._awaited: set[RequestKey] = set()
        # the latest lists of several pages, so that all pages are of one moment
        self._listings: OrderedDict[RequestKey, Listing] = OrderedDict()

    def handle(self, operator_id: str, request: OperatorRequest) -> None:
        """Carry out one request; called on the owner's thread."""
        key = RequestKey(operator_id, request.request_id)
        if key in self._awaited:
            return  # asked again because it takes long: the answer is on its way
        arguments = dict(request.arguments)
        after = str(arguments.pop(AFTER, ""))
        if after and _PLACE.fullmatch(after) is None:
            error = f"{request.operation}: {AFTER!r} is no place in a list"
            self._send(key, "", Outcome(None, error, "usage"))
            return
        listing = self._listings.get(key) if after else None
        if listing is not None:
            self._send(key, after, Outcome(listing))
            return
        self._awaited.add(key)
        with self._faults.caught(f"a request of {operator_id}", lambda why: self._fail(key, why)):
            answer = self._operations.submit(
                request.operation, arguments, Caller(operator_id, "operator"), request.request_id
            )
            answer.then(lambda outcome: self._send(key, after, outcome))

    def refuse(self, operator_id: str, request_id: str, reason: str) -> None:
        """Answer a request whose message is malformed."""
        self._send(RequestKey(operator_id, request_id), "", Outcome(None, reason, "usage"))

    def _fail(self, key: RequestKey, reason: str) -> None:
        self._send(key, "", Outcome(None, reason, "failed"))

    def _send(self, key: RequestKey, after: str, outcome: Outcome) -> None:
        self._awaited.discard(key)
        doing = f"the answer to {key.caller}"
        with self._faults.caught(doing, lambda why: self._fail(key, why)):
            self._reply(key.caller, self._reply_of(key, after, outcome))

    def _reply_of(self, key: RequestKey, after: str, outcome: Outcome) -> OperatorReply:
        result: dict[str, Any] = {}
        error, exit_code = outcome.error, 0
        if outcome.result is None:
            exit_code = _FAILED if outcome.fault == "failed" else _USAGE
        elif isinstance(outcome.result, Listing):
            result = self._page(key, after, outcome.result)
        else:
            fitted = outcome.result.fitted(RESULT_BYTES)
            if encoded_bytes(fitted) <= RESULT_BYTES:
                result = fitted.document()
            else:
                error, exit_code = "the result is too large for a message", _FAILED
        return OperatorReply(
            request_id=key.request_id, result=result, error=error[:2000], exit_code=exit_code
        )

    def _page(self, key: RequestKey, after: str, listing: Listing) -> dict[str, Any]:
        rows, start = listing.rows, _position(listing, after)
        shown: list[dict[str, Any]] = []
        left = PAGE_BYTES
        for row in rows[start:]:
            fitted = row.fitted(ROW_BYTES)
            left -= encoded_bytes(fitted)
            if shown and left < 0:
                break
            shown.append(fitted.document())
        end = start + len(shown)
        page: dict[str, Any] = {listing.rows_key: shown}
        if end < len(rows):
            page[NEXT] = f"{end}:{_id(listing, rows[end - 1])}"
            self._keep(key, listing)
        return page

    def _keep(self, key: RequestKey, listing: Listing) -> None:
        self._listings[key] = listing
        self._listings.move_to_end(key)
        if len(self._listings) > _LISTINGS_KEPT:
            self._listings.popitem(last=False)


def _position(listing: Listing, after: str) -> int:
    """Return how many rows the client has, of a list that may have changed since."""
    if not after:
        return 0
    number, _, row_id = after.partition(":")
    rows = listing.rows
    count = min(int(number), len(rows))
    if count > 0 and _id(listing, rows[count - 1]) == row_id:
        return count
    found = (index for index, row in enumerate(rows, 1) if _id(listing, row) == row_id)
    return next(found, count)


def _id(listing: Listing, row: OperationResult) -> str:
    return str(getattr(row, listing.id_key))
