"""The HTTP client against a server that says exactly the bytes of the test."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.cli.http_client import EventStream, HttpClient, HttpFailure
from deepseek.core.errors import ConfigurationError

Answer = Callable[[int], list[bytes]]
"""From the number of the request on the server to the pieces to send; none closes at once."""


@asynccontextmanager
async def raw_server(
    answer: Answer, connections: list[object] | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve raw bytes; yields the URL and the requests received, each whole."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if connections is not None:
            connections.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Len")]
                body = await reader.readexactly(int(length[0].split()[1]) if length else 0)
                requests.append(head + body)
                pieces = answer(len(requests))
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if not pieces or b"close" in pieces[0]:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


def plain(body: bytes, *, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (extra, len(body), body)


async def test_a_request_carries_json_and_the_path_of_the_url() -> None:
    async with raw_server(lambda _: [plain(b"{}")]) as (url, requests):
        with HttpClient(f"{url}/base/") as client:
            response = await client.request("POST", "/v1/x", body={"a": "é"})
    assert (response.status, response.body) == (200, b"{}")
    assert requests[0].startswith(b"POST /base/v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert requests[0].endswith('\r\nContent-Length: 10\r\n\r\n{"a":"é"}'.encode())


async def test_a_connection_serves_several_requests_one_after_another() -> None:
    connections: list[object] = []
    async with raw_server(lambda n: [plain(b"%d" % n)], connections) as (url, _):
        with HttpClient(url) as client:
            for expected in (b"1", b"2", b"3"):
                assert (await client.request("GET", "/")).body == expected
    assert len(connections) == 1


async def test_a_kept_connection_that_the_server_closed_is_replaced() -> None:
    async with raw_server(lambda n: [] if n == 2 else [plain(b"ok")]) as (url, requests):
        with HttpClient(url) as client:
            await client.request("GET", "/")
            assert (await client.request("GET", "/")).body == b"ok"
    assert len(requests) == 3


async def test_events_arrive_however_the_bytes_are_cut() -> None:
    events = b'data: {"a":1}\n\ndata: two\r\n\r\n: comment\n\nevent: x\ndata: l1\ndata: l2\n\n'
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    whole = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events)
    for size in (1, 7, len(whole)):
        pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
        seen: list[bytes] = []
        async with raw_server(lambda _, pieces=pieces: pieces) as (url, _):  # type: ignore[misc]
            with HttpClient(url) as client:
                response = await client.request("GET", "/", on_event=seen.append)
        assert seen == [b'{"a":1}', b"two", b"l1\nl2"]
        assert response.body == b""


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([], "connection closed"),
        ([b"HTTP/1.1 200 OK\r\nX: close\r\nContent-Length: 9\r\n\r\nhalf"], "connection closed"),
        ([b"SSH-2.0-OpenSSH\r\n"], "not HTTP"),
    ],
)
async def test_a_broken_exchange_has_a_kind(pieces: list[bytes], kind: str) -> None:
    async with raw_server(lambda _: pieces) as (url, _):
        with pytest.raises(HttpFailure) as caught:
            await HttpClient(url, timeout_s=5).request("GET", "/")
    assert caught.value.kind == kind


async def test_silence_is_a_timeout() -> None:
    async with raw_server(lambda _: [b"HTTP/1.1 200 OK\r\n"]) as (url, _):
        with pytest.raises(HttpFailure, match=r"within 0\.05 s"):
            await HttpClient(url, timeout_s=0.05).request("GET", "/")


async def test_an_error_of_the_sink_reaches_the_caller() -> None:
    def sink(data: bytes) -> None:
        raise BrokenPipeError("reader gone")

    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\n"
    async with raw_server(lambda _: [head + b"data: x\n\n"]) as (url, _):
        with pytest.raises(BrokenPipeError):
            await HttpClient(url).request("GET", "/", on_event=sink)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://h:99999", "http://h:x", ""])
def test_a_bad_address_is_refused_with_the_right_form(url: str) -> None:
    with pytest.raises(ConfigurationError, match="write http://HOST:PORT"):
        HttpClient(url)


def test_a_bare_host_and_port_is_taken_as_http() -> None:
    client = HttpClient("localhost:9000")
    assert (client.host, client.port, client.url) == ("localhost", 9000, "http://localhost:9000")


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])).filter(bool),
        max_size=5,
    ),
    st.integers(1, 9),
)
def test_any_events_survive_any_cut(texts: list[str], size: int) -> None:
    raw = b"".join(b"data: " + text.encode() + b"\n\n" for text in texts)
    stream = EventStream()
    found = [e for i in range(0, len(raw), size) for e in stream.feed(raw[i : i + size])]
    assert found == [text.encode() for text in texts]
