"""Adds what schemathesis cannot know from openapi.yaml, and counts the answers that it observes."""

import atexit
import collections
import json
import os
import zlib

import schemathesis

observed = collections.Counter()


@schemathesis.hook
def before_call(context, case, kwargs):
    """A payment has its key in the header, in the body, or equal in both: no schema can say that of two places. And most are
    for a service that there is."""
    is_order = case.operation.label == "POST /payments" and case.method == "POST" and isinstance(case.body, dict)
    if not is_order or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    in_header = case.headers.get("Idempotency-Key") if case.headers else None
    if in_header is not None:
        case.body.pop("idempotency_key", None)
    elif "idempotency_key" not in case.body:
        case.body["idempotency_key"] = f"key {zlib.crc32(json.dumps(case.body).encode())}"
    if zlib.crc32(case.body["client_number"].encode()) % 4:
        case.body["service_id"] = os.environ["DEMO_SERVICE_ID"]


@schemathesis.hook
def after_call(context, case, response):
    if response.request.method.upper() == case.operation.method.upper():
        observed[(case.operation.label, response.status_code)] += 1


@atexit.register
def write():
    with open(os.environ["OBSERVED"], "w") as file:
        json.dump([[label, status, count] for (label, status), count in observed.items()], file)
