"""HTTP endpoints: a path with a whole number as its parameter, and an answer now or later.

Must not know: what is asked or answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from pushservice.web import log_incident

#: Digits of a number that are looked at.
_DIGITS: Final = 9


class Reply(NamedTuple):
    """What is answered."""

    status: HTTPStatus
    content_type: str
    body: bytes


def json_reply(words: Any, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    """`words` as a line of JSON."""
    return Reply(status, "application/json", msgspec.json.encode(words) + b"\n")


def bad_request(fault: str) -> Reply:
    """What was asked makes no sense; `fault` says what would."""
    return json_reply({"error": fault}, HTTPStatus.BAD_REQUEST)


class IntParameter(NamedTuple):
    """A parameter that is a whole number."""

    name: str
    default: int
    least: int
    most: int

    @property
    def expected(self) -> str:
        """What would be right, in words."""
        return f"{self.name}={self.default}, a whole number from {self.least} to {self.most}"

    def read(self, args: Mapping[bytes, list[bytes]]) -> int:
        """Its value in the arguments of a request. Raises ValueError with what would be right."""
        texts = args.get(self.name.encode(), [])
        for name in args:
            if name != self.name.encode():
                shown = name[:40].decode("utf-8", "replace")
                raise ValueError(f"there is no {shown!r} here; right is {self.expected}")
        if not texts:
            return self.default
        if len(texts) > 1:
            raise ValueError(f"{self.name} is given {len(texts)} times; right is {self.expected}")
        text = texts[0]
        # What int() takes beyond digits, such as signs and underscores, is none here.
        if not text.isdigit() or len(text) > _DIGITS or not self.least <= int(text) <= self.most:
            shown = text[:40].decode("utf-8", "replace")
            raise ValueError(f"{self.name} can't be {shown!r}; right is {self.expected}")
        return int(text)


#: Answers a request, now or later.
Answer: TypeAlias = Callable[[Request], Reply | Deferred[Reply]]


def with_parameter(parameter: IntParameter, answer: Callable[[int], Deferred[Any]]) -> Answer:
    """A question with one parameter and no other, whose answer becomes JSON."""

    def answered(request: Request) -> Reply | Deferred[Reply]:
        try:
            number = parameter.read(request.args or {})
        except ValueError as fault:
            return bad_request(str(fault))
        return answer(number).addCallback(json_reply)

    return answered


class Endpoint(Resource):
    """One path; each request calls its function."""

    log = Logger()
    isLeaf = True

    def __init__(self, answer: Answer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library's, unannotated
        self._answer = answer

    def render(self, request: Request) -> bytes | int:
        # What Twisted answers to other methods by itself is HTML.
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"allow", b"GET, HEAD")
            refusal = {"error": "only GET and HEAD are served"}
            return _begun(request, json_reply(refusal, HTTPStatus.METHOD_NOT_ALLOWED))
        try:
            outcome = self._answer(request)
        except Exception:  # noqa: BLE001 - said in the log, and in the answer by an id
            outcome = self._failed(request, Failure())
        if isinstance(outcome, Reply):
            return _begun(request, outcome)
        self._answer_later(request, outcome)
        return NOT_DONE_YET

    def _failed(self, request: Request, failure: Failure) -> Reply:
        fault = {"error": log_incident(self.log, failure, request.path)}
        return json_reply(fault, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _answer_later(self, request: Request, outcome: Deferred[Reply]) -> None:
        gone: list[object] = []
        request.notifyFinish().addErrback(gone.append)

        def finish(reply: Reply) -> None:
            # Whoever left in the meantime gets no answer, and Twisted does not like to be asked.
            if not gone:
                body = _begun(request, reply)
                request.setHeader(b"content-length", b"%d" % len(body))
                if request.method != b"HEAD":
                    request.write(body)
                request.finish()

        outcome.addErrback(lambda failure: self._failed(request, failure)).addCallback(finish)


def _begun(request: Request, reply: Reply) -> bytes:
    """Say all but the body, which is returned."""
    request.setResponseCode(reply.status, reply.status.phrase.encode())
    request.setHeader(b"content-type", reply.content_type.encode())
    request.setHeader(b"cache-control", b"no-store")
    request.setHeader(b"x-content-type-options", b"nosniff")
    return reply.body


class Endpoints(Resource):
    """All endpoints by name; any other path is a 404 that lists them."""

    def __init__(self, questions: Mapping[str, Answer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library's, unannotated
        there = ", ".join(f"/{name}" for name in questions)
        self._otherwise = Endpoint(
            lambda _request: json_reply({"error": f"there is {there}"}, HTTPStatus.NOT_FOUND)
        )
        for name, answer in questions.items():
            self.putChild(name.encode(), Endpoint(answer))

    def getChild(self, path: bytes, request: Request) -> Resource:
        return self._otherwise
