"""A real HTTP server of a folder, with ranges, as a process of its own: `python range_server.py FOLDER PORT [SECONDS]`.

Each request is logged to stderr as one line. SECONDS: how long it waits in the middle of an answer that is longer than
4 KiB. `/elsewhere/X/...` redirects to the address X, percent-encoded.
"""

import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

HALF = 4096


class Ranges(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/elsewhere/"):
            self.answer(302, b"", Location=unquote(self.path.split("/")[2]))
            return
        file = Path(sys.argv[1]) / self.path.strip("/")
        if not file.is_file():
            self.answer(404, b"no such file")
            return
        content = file.read_bytes()
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        if first >= len(content):
            self.answer(416, b"")
        else:
            self.answer(206, content[first : last + 1])

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:HALF])
        if len(body) > HALF:
            time.sleep(float(sys.argv[3]) if len(sys.argv) > 3 else 0)
            self.wfile.write(body[HALF:])

    def log_request(self, code="-", size="-"):
        sys.stderr.write(f"{self.path} {code}\n")


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Ranges)
    print(server.server_port, flush=True)
    server.serve_forever()
