# Pays safely and follows the payment to its end. Needs Python 3.11 or newer, pydantic, and the types that docs/PAY.md makes of
# openapi.yaml (coro.py): an answer that is not as described is an error.

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid

from coro import AcceptedPayment, Order, Payment, Problem, Statement

EDGE = os.environ["EDGE_URL"]
USER = os.environ["DEMO_USER_ID"]
TERMINAL = {"completed", "rejected", "failed", "cancelled"}


def is_unknown(status):
    """Whether the outcome is not known, and the same request may be sent again."""
    return status in (408, 429) or status >= 500


class Refused(Exception):
    """A definite answer: nothing was changed. `problem` says why (docs/problems.md)."""

    def __init__(self, problem):
        super().__init__(f"{problem.type}: {problem.detail}")
        self.problem = problem


def call(answer_type, method, path, order=None, key=None):
    """Sends a request until its outcome is known. Every call is safe to repeat; `key` makes a payment so."""
    headers = {"X-User-ID": USER, "Content-Type": "application/json"}
    if key:
        headers["Idempotency-Key"] = json.dumps(key)
    data = None if order is None else order.model_dump_json(exclude_none=True).encode()
    pause = 0.2
    while True:
        request = urllib.request.Request(EDGE + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=40) as answer:
                return answer_type.model_validate_json(answer.read())
        except urllib.error.HTTPError as answer:
            if not is_unknown(answer.code):
                raise Refused(Problem.model_validate_json(answer.read())) from None
            wait = float(answer.headers.get("Retry-After", pause))
        except (OSError, http.client.HTTPException):
            wait = pause
        time.sleep(wait)
        pause = min(2 * pause, 10)


def pay(key, order):
    """Pays once per key, whatever goes wrong in between. Store the key before the first try."""
    return call(AcceptedPayment, "POST", "/payments", order, key)


def wait(payment):
    """The payment at its end. While `outcome_unknown` is true it goes on by itself: do not pay again."""
    while payment.status not in TERMINAL:
        payment = call(Payment, "GET", f"/payments/{payment.payment_id}?wait=25000")
    return payment


def cancel(payment):
    """Asks to cancel; the end says whether that was honoured. Too late is no error."""
    try:
        return call(Payment, "POST", f"/payments/{payment.payment_id}/cancel")
    except Refused as refused:
        if refused.problem.type != "urn:coro:problem:payment-ended":
            raise
        return call(Payment, "GET", f"/payments/{payment.payment_id}")


def statement():
    """Every movement of the balance, newest first."""
    cursor = ""
    while cursor is not None:
        page = call(Statement, "GET", "/balance/movements?limit=100" + (f"&cursor={cursor}" if cursor else ""))
        yield from page.movements
        cursor = page.next_cursor


if __name__ == "__main__":
    client_number, amount = sys.argv[1], int(sys.argv[2])
    key, order = str(uuid.uuid4()), Order(client_number=client_number, service_id="electricity", amount=amount)
    paid = pay(key, order)
    again = pay(key, order)
    assert again == paid, "the same key and the same order are the same payment"
    ended = wait(paid)
    print("payment", ended.payment_id, ended.status, ended.reason)
    slow = order.model_copy(update={"client_number": client_number + "-slow300"})
    late = wait(cancel(pay(str(uuid.uuid4()), slow)))
    print("cancel", late.payment_id, late.status, late.cancel)
    for movement in statement():
        if movement.payment_id == ended.payment_id:
            print("movement", movement.entry_no, movement.kind, movement.amount, movement.available_after)
