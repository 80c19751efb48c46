"""As much of Google Cloud Storage's JSON API, in memory, as gcsfs and TensorStore ask for: with a generation for every
object, conditions on it, and lists that are always up to date.
"""

import json
import re
import sys
import threading
import uuid
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)")
COPY = re.compile(r"(.+)/(rewriteTo|copyTo|moveTo)/b/([^/]+)/o/(.+)")

objects: dict[tuple[str, str], tuple[bytes, int]] = {}  # bucket and name: content and generation
uploads: dict[str, tuple[str, str, dict[str, str]]] = {}  # resumable ones: bucket, name and conditions
lock = threading.RLock()
generations = iter(range(1, 10**12))


class Refused(Exception):
    """An HTTP status that is the answer."""


def facts(bucket: str, name: str) -> dict:
    content, generation = objects[bucket, name]
    dates = {"timeCreated": "2026-01-01T00:00:00.000Z", "updated": "2026-01-01T00:00:00.000Z"}
    who = {"kind": "storage#object", "id": f"{bucket}/{name}/{generation}", "bucket": bucket, "name": name}
    return {**who, **dates, "size": str(len(content)), "generation": str(generation), "metageneration": "1"}


def check(bucket: str, name: str, query: dict[str, str], reading: bool = False) -> None:
    now = str(objects[bucket, name][1]) if (bucket, name) in objects else "0"
    if query.get("ifGenerationMatch", now) != now:
        raise Refused(404 if reading and now == "0" else 412)
    if query.get("ifGenerationNotMatch") == now != "0":
        raise Refused(304)


def put(bucket: str, name: str, content: bytes, query: dict[str, str]) -> dict:
    check(bucket, name, query)
    objects[bucket, name] = content, next(generations)
    return facts(bucket, name)


def delete(bucket: str, name: str, query: dict[str, str]) -> None:
    if (bucket, name) not in objects:
        raise Refused(404)
    check(bucket, name, query)
    del objects[bucket, name]


def listing(bucket: str, query: dict[str, str]) -> dict:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    start, end = query.get("startOffset", ""), query.get("endOffset", "")
    items, folders = [], set()
    for name in sorted(n for b, n in objects if b == bucket and n.startswith(prefix)):
        if name < start or (end and name >= end):
            continue
        head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        if found:
            folders.add(prefix + head + delimiter)
        else:
            items.append(facts(bucket, name))
    return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 304:
            self.wfile.write(body)

    def serve(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with lock:
                getattr(self, f"on_{self.command.lower()}")(url.path, query, body)
        except Refused as refused:
            self.answer(refused.args[0], b"{}")

    do_GET = do_POST = do_DELETE = serve

    def on_get(self, path: str, query: dict[str, str], body: bytes) -> None:
        if not (found := OBJECT.fullmatch(path)):
            bucket = path.removeprefix("/storage/v1/b/").partition("/")[0]
            described = listing(bucket, query) if path.endswith("/o") else {"kind": "storage#bucket", "name": bucket}
            return self.answer(200, json.dumps(described).encode())
        bucket, name = found[1], unquote(found[2])
        check(bucket, name, query, reading=True)
        if (bucket, name) not in objects:
            raise Refused(404)
        if query.get("alt") != "media":
            return self.answer(200, json.dumps(facts(bucket, name)).encode())
        content, generation = objects[bucket, name]
        size = len(content)
        kind = {"Content_Type": "application/octet-stream", "x_goog_generation": str(generation)}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or size - 1), size - 1)
            if first >= size:
                raise Refused(416)
            return self.answer(206, content[first : last + 1], Content_Range=f"bytes {first}-{last}/{size}", **kind)
        return self.answer(200, content, **kind)

    def on_post(self, path: str, query: dict[str, str], body: bytes) -> None:
        if path.startswith("/batch/"):
            return self.batch(body)
        bucket = path.partition("/b/")[2].partition("/")[0]
        if (found := OBJECT.fullmatch(path)) and (copied := COPY.fullmatch(found[2])):
            source, target = (bucket, unquote(copied[1])), (copied[3], unquote(copied[4]))
            if source not in objects:
                raise Refused(404)
            made = put(*target, objects[source][0], {})
            if copied[2] == "moveTo":
                del objects[source]
            return self.answer(200, json.dumps({"done": True, "resource": made, **made}).encode())
        if path == "/session":  # a resumable upload, in one piece
            bucket, name, conditions = uploads.pop(query["upload_id"])
            made = put(bucket, name, body, conditions)
        elif query["uploadType"] == "media":
            made = put(bucket, query["name"], body, query)
        elif query["uploadType"] == "multipart":
            whole = message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body)
            about, content = whole.get_payload()
            made = put(bucket, json.loads(about.get_payload())["name"], content.get_payload(decode=True), query)
        else:
            session = uuid.uuid4().hex
            uploads[session] = bucket, query.get("name") or json.loads(body)["name"], query
            return self.answer(200, Location=f"http://{self.headers['Host']}/session?upload_id={session}")
        return self.answer(200, json.dumps(made).encode())

    def on_delete(self, path: str, query: dict[str, str], body: bytes) -> None:
        found = OBJECT.fullmatch(path)
        delete(found[1], unquote(found[2]), query)
        self.answer(204)

    def batch(self, body: bytes) -> None:
        """Delete many objects: each part is an HTTP request, and each part of the answer its response."""
        parts = []
        for i, path in enumerate(re.findall(rb"DELETE (\S+) HTTP/1.1", body), 1):
            found, status = OBJECT.fullmatch(urlsplit(path.decode()).path), "204 No Content"
            try:
                delete(found[1], unquote(found[2]), {})
            except Refused:
                status = "404 Not Found"
            parts.append(
                f"--b\r\nContent-Type: application/http\r\nContent-ID: <response-{i}>\r\n\r\nHTTP/1.1 {status}\r\n\r\n"
            )
        self.answer(200, "".join([*parts, "--b--\r\n"]).encode(), Content_Type="multipart/mixed; boundary=b")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # of a client that was killed, or has lost interest
            super().handle_error(request, client)


def serve() -> Server:
    """Serve at a free port of this machine, in a thread."""
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def environment(server: Server) -> dict[str, str]:
    """Give what makes gs:// mean this server for gcsfs and for TensorStore."""
    address = f"http://127.0.0.1:{server.server_port}"
    local = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, **local}
