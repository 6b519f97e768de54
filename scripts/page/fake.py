"""A server that serves the page's files as wayinfer does and answers by a script."""
from __future__ import annotations

import json, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "src"
FILES = SOURCES / "server/page"
# What the page shares with reports.
PICTURES = SOURCES / "show/pictures.css"
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
          "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8"}
RESIDENCY = {
    "model": "fake-small", "loaded": True, "streamed": True, "weights": "9 GB of weights in 2 GB",
    "hits": 30, "misses": 10, "hit_rate": 0.75, "guesses": 4, "right_guesses": 3, "bytes_read": 1234567,
    "wait_seconds": 1.5,
    "pictures": [{"title": "Experts by layer", "picture": {
        "width": 4000, "height": 40, "name": "Use of experts by layer", "elements": [
            {"tag": "rect", "attributes": {"x": "0", "y": "0", "width": "30", "height": "20", "class": "f7"},
             "title": "blk 0, expert 0"},
            {"tag": "text", "attributes": {"x": "4", "y": "14", "class": "t7"}, "text": "17"}]}}],
}
MODELS = [{"id": "fake-small", "object": "model", "context_length": 4096},
          {"id": "fake-large", "object": "model", "meta": {"n_ctx": 32768}}]


class Fake:
    """A server on a free port: an origin, so a storage, of its own.

    `patches` alters files as they are served: {file: [(old, new)]}, each of which must be found once.
    `answers` maps a question to (reasoning, content); other questions are looked up in SCRIPTS, else echoed.
    """

    def __init__(self, policy: str | None = POLICY, key: str | None = None, models: list[dict] = MODELS,
                 patches: dict | None = None, answers: dict | None = None):
        self.policy, self.key, self.models, self.answers = policy, key, models, answers or {}
        paths = [*FILES.iterdir(), PICTURES]
        self.files = {path.name: path.read_text() for path in paths if path.suffix in TYPES}
        for name, changes in (patches or {}).items():
            for old, new in changes:
                if self.files[name].count(old) != 1:
                    raise ValueError(f"a canary no longer fits {name}: {old!r}")
                self.files[name] = self.files[name].replace(old, new)
        self.requests: list[dict] = []  # bodies of chat requests
        self.unexpected: list[str] = []  # paths that the page has no reason to ask for
        self.left = threading.Event()  # a client closed a stream before its end
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"fake": self}))
        self.httpd.daemon_threads = True
        self.httpd.handle_error = lambda *_: None  # clients that leave
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}/"
        threading.Thread(target=self.httpd.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.httpd.shutdown()
        self.httpd.server_close()


class Handler(BaseHTTPRequestHandler):
    fake: Fake
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status: int, kind: str, body: str, **headers: str):
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def error(self, status: int, message: str, **headers: str):
        body = json.dumps({"error": {"message": message, "code": status}})
        self.reply(status, "application/json", body, **headers)

    def admitted(self) -> bool:
        if self.fake.key is None or self.headers.get("Authorization") == f"Bearer {self.fake.key}":
            return True
        self.error(401, "This server wants a key.")
        return False

    def do_GET(self):
        name = {"/": "index.html"}.get(self.path, self.path.removeprefix("/page/"))
        if name in self.fake.files and (self.path == "/" or self.path.startswith("/page/")):
            headers = {"Cache_Control": "no-store"}
            if self.fake.policy:
                headers["Content_Security_Policy"] = self.fake.policy
            self.reply(200, TYPES[Path(name).suffix], self.fake.files[name], **headers)
        elif self.path == "/v1/models":
            if self.admitted():
                self.reply(200, "application/json", json.dumps({"object": "list", "data": self.fake.models}))
        elif self.path == "/residency/fake-small":
            if self.admitted():
                self.reply(200, "application/json", json.dumps(RESIDENCY))
        else:
            self.fake.unexpected.append(self.path)
            self.reply(404, "text/plain", "nothing here")

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/chat/completions":
            self.fake.unexpected.append(self.path)
            return self.reply(404, "text/plain", "nothing here")
        if not self.admitted():
            return
        body = json.loads(raw)
        self.fake.requests.append(body)
        # Questions without an answer between them come as one: the last counts.
        question = body["messages"][-1]["content"]
        question = question if question in self.fake.answers else question.split("\n\n")[-1]
        try:
            if question in self.fake.answers:
                reasoning, content = self.fake.answers[question]
                self.stream(reasoning, content)
            else:
                SCRIPTS.get(question, Handler.echo)(self)
        except (BrokenPipeError, ConnectionResetError):
            self.fake.left.set()

    # --- Streams: bodies end with the connection, which needs no chunked coding ---

    def begin(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def event(self, value: dict):
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())

    def delta(self, **delta):
        self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def conclude(self, reason: str = "stop", tokens: int = 7):
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        usage = {"prompt_tokens": 93, "completion_tokens": tokens, "total_tokens": 93 + tokens,
                 "prompt_tokens_details": {"cached_tokens": 41}}
        own = {"tokens_per_second": 12.5, "expert_hits": 0.973}
        self.event({"choices": [], "usage": usage, "wayinfer": own})
        self.wfile.write(b"data: [DONE]\n\n")

    def stream(self, reasoning: str, content: str):
        """In pieces: a few, so that huge answers take no time on the way."""
        self.begin()
        self.delta(role="assistant", content="")
        for name, text in (("reasoning_content", reasoning), ("content", content)):
            step = max(7, len(text) // 12)
            for at in range(0, len(text), step):
                self.delta(**{name: text[at:at + step]})
        self.conclude()

    def echo(self):
        count = len(self.fake.requests)
        self.stream("", f"Answer {count} to **{self.fake.requests[-1]['messages'][-1]['content']}**.")

    def slow(self):
        self.begin()
        for number in range(2000):
            self.delta(content=f"word{number} ")
            time.sleep(0.02)
        self.conclude()

    def thinking(self):
        self.begin()
        self.delta(reasoning_content="First this, ")
        time.sleep(0.4)
        self.delta(reasoning_content="then that.")
        self.delta(content="So it is.")
        self.conclude()

    def in_pieces(self):
        """Events cut anywhere, even within a letter; comments; all kinds of line ends; data of two lines."""
        self.begin()
        chunk = {"choices": [{"index": 0, "delta": {"content": "Zwölf Boxkämpfer 🥊 日本語"}}]}
        raw = (": ping\r\n\r\nevent: x\r\n" f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n"
               'data: {"choices": [{"index": 0,\rdata: "delta": {"content": " En"}}]}\r\r: ping\n\n'
               'data: {"choices": [{"index": 0,\ndata: "delta": {"content": "de"}}]}\n\n').encode()
        for at in range(0, len(raw), 3):
            self.wfile.write(raw[at:at + 3])
            self.wfile.flush()
            time.sleep(0.001)
        self.conclude()

    def broken_off(self):
        self.begin()
        self.delta(content="The beginning")
        time.sleep(0.1)

    def error_within(self):
        self.begin()
        self.delta(content="The beginning")
        self.event({"error": {"message": "The disk is <b>gone</b>.", "type": "server_error"}})

    def rubbish_within(self):
        self.begin()
        self.wfile.write(b"data: {rubbish\n\n")

    def cut_by_length(self):
        self.begin()
        self.delta(content="Too long")
        self.conclude("length")


SCRIPTS = {
    "slow": Handler.slow,
    "thinking": Handler.thinking,
    "in pieces": Handler.in_pieces,
    "broken off": Handler.broken_off,
    "error within": Handler.error_within,
    "rubbish within": Handler.rubbish_within,
    "cut by length": Handler.cut_by_length,
    "refused": lambda handler: handler.error(400, "The prompt has 5000 tokens, the context 4096."),
    "busy": lambda handler: handler.error(503, "All slots are taken.", Retry_After="7"),
    "proxy": lambda handler: handler.reply(502, "text/html", "<h1>Bad gateway</h1><script>pwned=1</script>"),
}
