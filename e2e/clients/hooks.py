"""Adds what schemathesis cannot know from openapi.yaml, and counts the answers that it observes."""

import atexit
import collections
import json
import os
import unicodedata
import zlib

import schemathesis

TEXTS = ("client_number", "service_id", "idempotency_key", "q")

observed = collections.Counter()


def visible(text):
    """Without characters that Coro refuses, as the pattern says: schemathesis reads `\\p{C}` as control characters alone."""
    return "".join(c if c == " " or unicodedata.category(c)[0] not in "CZ" else "x" for c in text)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Makes valid what the schema cannot say of valid requests."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    for values in (case.query, case.body):
        for name in TEXTS:
            if isinstance(values, dict) and isinstance(values.get(name), str):
                values[name] = visible(values[name])
    if case.operation.label == "POST /payments" and case.method == "POST" and isinstance(case.body, dict):
        complete(case.body, case.headers or {})


def complete(order, headers):
    """The key is in the header, in the body, or equal in both. An amount has no point, and to JSON Schema 1.0 is an integer.
    Most payments are for a service that there is."""
    if "Idempotency-Key" in headers:
        order.pop("idempotency_key", None)
    elif "idempotency_key" not in order:
        order["idempotency_key"] = f"key {zlib.crc32(json.dumps(order).encode())}"
    order["amount"] = int(order["amount"])
    if zlib.crc32(order["client_number"].encode()) % 4:
        order["service_id"] = os.environ["DEMO_SERVICE_ID"]


@schemathesis.hook
def after_call(context, case, response):
    if response.request.method.upper() == case.operation.method.upper():
        observed[(case.operation.label, response.status_code)] += 1


@atexit.register
def write():
    with open(os.environ["OBSERVED"], "w") as file:
        json.dump([[label, status, count] for (label, status), count in observed.items()], file)
