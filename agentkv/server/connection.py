"""Connections that end by themselves: a client that neither sends nor reads costs memory and a file only for a time.

uvicorn stops writing to a client that does not read (beyond 64 KiB) and stops reading a body that nobody takes, so what
a connection holds is bounded; here it gets an end. A client that closes its sending half has hung up, as uvicorn sees
it.
"""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from agentkv.server.errors import ApiError


def connection_class(read_timeout: float, write_timeout: float) -> type[H11Protocol]:
    """The protocol for `uvicorn.Config(http=...)`.

    Args:
        read_timeout: seconds in which a request must have arrived whole.
        write_timeout: seconds that a client may leave unread what is sent to it.
    """

    class Connection(H11Protocol):
        _reading: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_request()

        def data_received(self, data: bytes) -> None:
            self._expect_request()
            super().data_received(data)
            if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
                self._request_is_here()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.IDLE:
                self._request_is_here()  # idle between two requests: uvicorn's keep-alive timer runs
            elif self.conn.their_state is h11.SEND_BODY:
                self._expect_request()  # the next one came behind this one, and not yet all of it

        def connection_lost(self, exc: Exception | None) -> None:
            self._request_is_here()
            self.resume_writing()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._writing is None:
                self._writing = self.loop.call_later(write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None
            if self.flow is not None:
                super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self.loop.call_later(write_timeout, self.transport.abort)  # closing waits for what is not read yet

        def send_400_response(self, msg: str) -> None:
            self._answer(ApiError(400, msg, code="invalid_http"))

        def _expect_request(self) -> None:
            if self._reading is None:
                self._reading = self.loop.call_later(read_timeout, self._give_up_reading)

        def _request_is_here(self) -> None:
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def _give_up_reading(self) -> None:
            if self.cycle is None or not self.cycle.response_started:
                self._answer(ApiError(408, f"the request did not arrive within {read_timeout:g} s", code="timeout"))
            self.transport.abort()

        def _answer(self, error: ApiError) -> None:
            """An answer without an application, where no request was read."""
            body = json.dumps(error.envelope()).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            headers.append((b"connection", b"close"))
            try:
                for event in (
                    h11.Response(status_code=error.status, headers=headers),
                    h11.Data(body),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:  # the other side broke off, or an answer is under way
                pass
            self.transport.close()

    return Connection
