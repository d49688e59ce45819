"""Fetching media: what is served, refused, bounded in size and time, against real servers."""

import base64
import dataclasses
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from quire.errors import QuireError
from quire.multimodal import addresses, download
from quire.multimodal.media import MediaError, MediaPolicy, fetch

LOCAL = MediaPolicy(allow_private_addresses=True, timeout_s=5.0, max_bytes=1000)
BODY = bytes(range(256))


class Site(http.server.BaseHTTPRequestHandler):
    """The path says how to answer; every request is noted."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Host"]))
        self.close_connection = True
        getattr(self, self.path.split("/")[1].split("?")[0])()

    def _head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def body(self) -> None:
        self._head(Content_Length=str(len(BODY)))
        self.wfile.write(BODY)

    def chunked(self) -> None:
        self._head(Transfer_Encoding="chunked")
        self.wfile.write(b"80\r\n" + BODY[:128] + b"\r\n80\r\n" + BODY[128:] + b"\r\n0\r\n\r\n")

    def large(self) -> None:
        self._head(Content_Length="1001")  # nothing follows: it must be refused by its length

    def endless(self) -> None:
        self._head()
        try:
            while True:
                self.wfile.write(b"x" * 4096)
        except OSError:
            pass

    def endless_chunks(self) -> None:
        self._head(Transfer_Encoding="chunked")
        try:
            while True:
                self.wfile.write(b"100\r\n" + BODY + b"\r\n")
        except OSError:
            pass

    def short(self) -> None:
        self._head(Content_Length="300")
        self.wfile.write(BODY)

    def slow(self) -> None:
        self._head(Content_Length="900")
        self._drip()

    def slow_head(self) -> None:
        self._drip()

    def _drip(self) -> None:
        try:
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    def gzip(self) -> None:
        self._head(Content_Encoding="gzip", Content_Length="0")

    def missing(self) -> None:
        self._head(404, Content_Length="0")

    def to(self) -> None:
        self._head(302, Location=unquote(self.path.removeprefix("/to/")), Content_Length="0")

    def loop(self) -> None:
        self._head(307, Location="/loop", Content_Length="0")

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclasses.dataclass
class Running:
    """A site's port, and the (path, Host header) of every request that it got."""

    port: int
    seen: list[tuple[str, str]]

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"


class QuietServer(http.server.ThreadingHTTPServer):
    """A handshake that the client breaks off is no error to print."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class Server6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


def serve(kind: type[http.server.ThreadingHTTPServer], host: str) -> Iterator[Running]:
    seen: list[tuple[str, str]] = []
    handler = type("Handler", (Site,), {"seen": seen})
    with kind((host, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Running(server.server_address[1], seen)
        server.shutdown()
        thread.join()


@pytest.fixture
def site() -> Iterator[Running]:
    yield from serve(http.server.ThreadingHTTPServer, "127.0.0.1")


@pytest.fixture
def site6() -> Iterator[Running]:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    yield from serve(Server6, "::1")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """What names resolve to, one list of addresses for each time that they are looked up."""
    table: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: object, **kwargs: object) -> object:
        if host.rstrip(".") not in table:
            return real(host, port, *args, **kwargs)  # pyright: ignore
        found = table[host.rstrip(".")].pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port)) for text in found]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", getaddrinfo)
    return table


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were connected to; those of 8.8.8.0/24 lead to this machine."""
    asked: list[str] = []
    real = socket.create_connection

    def create_connection(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address[0])
        host = "127.0.0.1" if address[0].startswith("8.8.8.") else address[0]
        return real((host, address[1]), timeout)

    monkeypatch.setattr(download.socket, "create_connection", create_connection)
    return asked


@pytest.mark.parametrize("path", ["body", "chunked", "to//body", "to/../body?x=1"])
def test_a_body_is_fetched(site: Running, path: str) -> None:
    assert fetch(site.url(path), LOCAL) == BODY
    assert site.seen[-1][1] == f"127.0.0.1:{site.port}"


def test_a_path_beyond_ascii_is_encoded(site: Running) -> None:
    assert fetch(site.url("body?q=é%20&r=[1]"), LOCAL) == BODY
    assert site.seen[0][0] == "/body?q=%C3%A9%20&r=%5B1%5D"


def test_ipv6(site6: Running) -> None:
    assert fetch(site6.url("body", "[::1]"), LOCAL) == BODY
    assert site6.seen == [("/body", f"[::1]:{site6.port}")]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("large", "sends 1001 bytes, and a medium may have at most 1000"),
        ("endless", "sends more, and a medium may have at most 1000"),
        ("endless_chunks", "sends more, and a medium may have at most 1000"),
        ("short", "ended 44 bytes before"),
        ("missing", "status 404"),
        ("gzip", "encoded as 'gzip'"),
        ("loop", "at most 3 redirects"),
        ("to/file:///etc/passwd", "scheme is 'file'"),
        ("to/data:image/png;base64,AAAA", "scheme is 'data'"),
        ("to/http://[oops/", "cannot be read"),
    ],
)
def test_a_bad_answer_is_refused(site: Running, path: str, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        fetch(site.url(path), LOCAL)


@pytest.mark.parametrize("path", ["slow", "slow_head"])
def test_a_slow_server_has_only_so_long_for_everything(site: Running, path: str) -> None:
    start = time.monotonic()
    with pytest.raises(MediaError, match="within 0.4 seconds"):
        fetch(site.url(path), dataclasses.replace(LOCAL, timeout_s=0.4))
    assert time.monotonic() - start < 2


def test_a_server_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(MediaError, match="within 0.2 seconds"):
            fetch(url, dataclasses.replace(LOCAL, timeout_s=0.2))


def test_a_slow_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: time.sleep(1) or [])
    start = time.monotonic()
    with pytest.raises(MediaError, match="no public address"):
        fetch("http://slow.test/", MediaPolicy(timeout_s=0.1))
    assert time.monotonic() - start < 0.9


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "localhost.",
        "0x7f000001",
        "0x7f.1",
        "2130706433",
        "127.1",
        "0177.0.0.1",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fe80::1%25lo]",
        "[fd00:ec2::254]",
        "169.254.169.254",
        "10.0.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "224.0.0.1",
        "255.255.255.255",
        "①②⑦.0.0.1",
        "no-such-name.invalid",
    ],
)
def test_hosts_that_are_not_public_are_refused_alike(
    site: Running, connected: list[str], host: str
) -> None:
    with pytest.raises(MediaError) as refusal:
        fetch(site.url("body", host), MediaPolicy())
    assert connected == []
    assert site.seen == []
    assert "has no public address" in str(refusal.value) or "cannot be read" in str(refusal.value)


@pytest.mark.parametrize("port", [None, 1])
def test_a_refusal_does_not_tell_whether_a_private_host_answers(
    site: Running, port: int | None
) -> None:
    with pytest.raises(MediaError) as refusal:
        fetch(f"http://127.0.0.1:{port or site.port}/", MediaPolicy())
    assert str(refusal.value) == (
        "The host '127.0.0.1' has no public address, and media are fetched from public hosts only. "
        "Send the medium as a data: URL; a server's operator may set allow_private_media_addresses."
    )


def test_a_name_with_one_private_address_among_public_ones(
    names: dict[str, list[list[str]]], connected: list[str]
) -> None:
    names["mixed.test"] = [["8.8.8.8", "10.0.0.1"]]
    with pytest.raises(MediaError, match="no public address"):
        fetch("http://mixed.test/", MediaPolicy())
    assert connected == []


def test_the_connection_goes_to_the_address_that_was_checked(
    site: Running, names: dict[str, list[list[str]]], connected: list[str]
) -> None:
    names["rebind.test"] = [["8.8.8.8"], ["127.0.0.1"]]
    assert fetch(site.url("body", "rebind.test"), MediaPolicy()) == BODY
    assert connected == ["8.8.8.8"]
    assert names["rebind.test"] == [["127.0.0.1"]]  # nobody looked it up again
    assert site.seen == [("/body", f"rebind.test:{site.port}")]


@pytest.mark.parametrize("host", ["127.0.0.1", "0x7f000001", "[::1]", "inside.test"])
def test_redirects_to_private_addresses(
    site: Running, names: dict[str, list[list[str]]], connected: list[str], host: str
) -> None:
    names |= {"outside.test": [["8.8.8.8"]], "inside.test": [["192.168.0.1"]]}
    with pytest.raises(MediaError, match="no public address"):
        fetch(site.url("to/" + site.url("body", host), "outside.test"), MediaPolicy())
    assert connected == ["8.8.8.8"]


def test_the_next_address_is_tried_where_one_is_dead(
    site: Running, names: dict[str, list[list[str]]], connected: list[str]
) -> None:
    with socket.create_server(("127.0.0.2", 0)) as closed:
        port = closed.getsockname()[1]
    names["two.test"] = [["127.0.0.2", "127.0.0.1"]]
    assert port
    assert fetch(site.url("body", "two.test"), LOCAL) == BODY
    assert connected == ["127.0.0.2", "127.0.0.1"]


def test_a_refused_connection(site: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(MediaError, match=r"cannot be fetched from '127.0.0.1' \(Connection"):
        fetch(f"http://127.0.0.1:{port}/", LOCAL)


def test_allowed_domains_hold_for_every_hop(
    site: Running, names: dict[str, list[list[str]]], connected: list[str]
) -> None:
    policy = MediaPolicy(allowed_media_domains=("Good.test",))
    names |= {"good.test": [["8.8.8.8"]] * 3, "evil.test": [["8.8.8.9"]]}
    assert fetch(site.url("body", "GOOD.test."), policy) == BODY
    for host in ("evil.test", "good.test.evil.test", "xgood.test", "8.8.8.8"):
        with pytest.raises(MediaError, match=r"not allowed; allowed are good\.test"):
            fetch(site.url("body", host), policy)
    with pytest.raises(MediaError, match="'evil.test' are not allowed"):
        fetch(site.url("to/" + site.url("body", "evil.test"), "good.test"), policy)
    assert connected == ["8.8.8.8", "8.8.8.8"]


@pytest.mark.parametrize(
    "url",
    [
        "http://good.test@127.0.0.1/",
        "http://good.test:80@127.0.0.1/",
        "http://127.0.0.1#@good.test/",
        "http://127.0.0.1\\@good.test/",
        "http://good.test\\.evil.test/",
        "http://good.test\t/",
        "http://good.test/a b",
        "http://good.test/\r\nX: y",
        "http://good.test:99999/",
        "http://good.test:0/",
        "http://[::1/",
        "http:///path",
        "http:good.test",
        "http://%31%32%37.0.0.1/",
        "http://" + "a" * 70 + ".test/",
    ],
)
def test_tricks_with_urls(connected: list[str], url: str) -> None:
    with pytest.raises(MediaError):
        fetch(url, MediaPolicy())
    assert connected == []


@pytest.mark.parametrize(
    "url", ["", "ftp://x/", "gopher://x/", "/etc/passwd", "blob:x", "HTTPS", "javascript:1"]
)
def test_wrong_schemes(url: str) -> None:
    with pytest.raises(MediaError):
        fetch(url, MediaPolicy())


def test_data_urls() -> None:
    text = base64.b64encode(BODY).decode()
    assert fetch(f"data:image/png;base64,{text}", LOCAL) == BODY
    assert fetch(f"DATA:;BASE64,{text}", LOCAL) == BODY
    assert fetch(f"data:image/png;base64,{text.replace('+', '%2B')}", LOCAL) == BODY
    assert fetch("data:;base64,", LOCAL) == b""


@pytest.mark.parametrize("size", [998, 999, 1000])
def test_a_data_url_of_the_largest_size(size: int) -> None:
    text = base64.b64encode(bytes(size)).decode()
    assert fetch(f"data:;base64,{text}", LOCAL) == bytes(size)
    encoded = "".join(f"%{ord(character):02x}" for character in text)
    assert fetch(f"data:;base64,{encoded}", LOCAL) == bytes(size)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png,abc", "no base64 data: URL"),
        ("data:image/png;base64", "no base64 data: URL"),
        ("data:" + "x" * 2000 + ";base64,", "no base64 data: URL"),
        ("data:;base64,AAA", "malformed"),
        ("data:;base64,AA\nAA", "malformed"),
        ("data:;base64,AA-_", "malformed"),
        ("data:;base64,AAAé", "malformed"),
        ("data:;base64," + base64.b64encode(bytes(1001)).decode(), "1001 bytes"),
        ("data:;base64," + "A" * 2000, "2000 characters"),
        ("data:;base64," + "%41" * 2000, "6000 characters"),
    ],
)
def test_bad_data_urls(url: str, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        fetch(url, LOCAL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`root` beside a secret, with links, a pipe and a folder inside."""
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a b.png").write_bytes(BODY)
    (root / "large").write_bytes(bytes(1001))
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "secret").write_bytes(b"secret")
    (root / "inside").symlink_to(root / "deep" / "a b.png")
    (root / "outside").symlink_to(tmp_path / "root2" / "secret")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    return root


def test_files_below_the_allowed_folder(folder: Path) -> None:
    policy = MediaPolicy(allowed_local_media_path=str(folder), max_bytes=1000)
    assert fetch(f"file://{folder}/deep/a%20b.png", policy) == BODY
    assert fetch(f"file://localhost{folder}/inside", policy) == BODY
    several = MediaPolicy(allowed_local_media_path=(str(folder / "deep"), str(folder)))
    assert fetch(f"file://{folder}/large", several) == bytes(1001)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("outside", "not under an allowed folder"),
        ("../root2/secret", "not under an allowed folder"),
        ("%2e%2e/root2/secret", "not under an allowed folder"),
        ("../root2/missing", "not under an allowed folder"),
        ("../../../../etc/passwd", "not under an allowed folder"),
        ("x%00y", "not under an allowed folder|cannot be read"),
        ("loop", "not under an allowed folder|cannot be read"),
        ("missing", "No such file"),
        ("pipe", "no regular file"),
        ("deep", "Is a directory|no regular file"),
        ("large", "holds more, and a medium may have at most 1000"),
    ],
)
def test_files_that_are_refused(folder: Path, path: str, message: str) -> None:
    policy = MediaPolicy(allowed_local_media_path=str(folder), max_bytes=1000)
    with pytest.raises(MediaError, match=message):
        fetch(f"file://{folder}/{path}", policy)


def test_files_of_other_hosts_and_without_permission(folder: Path) -> None:
    policy = MediaPolicy(allowed_local_media_path=str(folder))
    with pytest.raises(MediaError, match="not under an allowed folder"):
        fetch(f"file://other{folder}/inside", policy)
    with pytest.raises(MediaError, match="the server allows none"):
        fetch(f"file://{folder}/inside", MediaPolicy())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MediaPolicy(timeout_s=0), "timeout_s is 0"),
        (lambda: MediaPolicy(timeout_s=float("nan")), "timeout_s is nan"),
        (lambda: MediaPolicy(max_bytes=0), "max_bytes is 0"),
        (lambda: MediaPolicy(max_redirects=-1), "max_redirects is -1"),
        (lambda: MediaPolicy(allowed_media_domains=("*.x.com",)), "plain host names"),
        (lambda: MediaPolicy(allowed_media_domains=("http://x.com",)), "plain host names"),
    ],
)
def test_bad_options(make: Callable[[], MediaPolicy], message: str) -> None:
    with pytest.raises(MediaError, match=message) as error:
        make()
    assert isinstance(error.value, QuireError)
    assert isinstance(error.value, ValueError)


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_https_checks_the_certificate_of_the_name(
    tmp_path: Path, names: dict[str, list[list[str]]], connected: list[str]
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=secure.test"]
        + ["-addext", "subjectAltName=DNS:secure.test", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    names |= {"secure.test": [["8.8.8.8"]] * 2, "other.test": [["8.8.8.8"]]}
    trusted = ssl.create_default_context(cafile=certificate)
    handler = type("Handler", (Site,), {"seen": []})
    with QuietServer(("127.0.0.1", 0), handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        tail = f":{server.server_address[1]}/body"
        assert download.download(f"https://secure.test{tail}", MediaPolicy(), trusted) == BODY
        for host, tls in (("other.test", trusted), ("secure.test", None)):
            with pytest.raises(MediaError, match="SSLCertVerificationError"):
                download.download(f"https://{host}{tail}", MediaPolicy(), tls)
        server.shutdown()
        thread.join()
