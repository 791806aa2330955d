"""Requests through slots that are refilled: continuous batching, without a server."""

from jaxdiff.serve.drafted import check_drafted, draft_stream
from jaxdiff.serve.engine import decode_stream
from jaxdiff.serve.insertions import check_insertion, insert_stream
from jaxdiff.serve.queue import Answer, Meter, Partial, Refusal, Request, check_request

__all__ = [
    "Answer",
    "Meter",
    "Partial",
    "Refusal",
    "Request",
    "check_drafted",
    "check_insertion",
    "check_request",
    "decode_stream",
    "draft_stream",
    "insert_stream",
]
