"""Origins for programs that nobody here wrote. `git ROOT`: git's own server over HTTP. `s3`: buckets that refuse what is not signed right,
by the reckoning of botocore itself. `echo`: says the SHA-256 of what it is sent. Each prints its port."""

import hashlib
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Origin(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            out = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                out.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(out)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        raise NotImplementedError

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)


class Git(Origin):
    def handle_any(self):
        path, _, query = self.path.partition("?")
        environment = dict(os.environ, GIT_PROJECT_ROOT=sys.argv[2], GIT_HTTP_EXPORT_ALL="1", PATH_INFO=path, QUERY_STRING=query)
        environment |= {"REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""), "REMOTE_USER": "git", "REMOTE_ADDR": "127.0.0.1"}
        if "Git-Protocol" in self.headers:
            environment["GIT_PROTOCOL"] = self.headers["Git-Protocol"]
        body = self.body()
        if self.headers.get("Content-Encoding"):
            environment["HTTP_CONTENT_ENCODING"] = self.headers["Content-Encoding"]
        environment["CONTENT_LENGTH"] = str(len(body))
        out = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True).stdout
        head, _, rest = out.partition(b"\r\n\r\n")
        headers = [tuple(line.decode().split(": ", 1)) for line in head.split(b"\r\n")]
        status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
        self.answer(status, rest, [h for h in headers if h[0] != "Status"])


KEY, SECRET = "AKIDEXAMPLE", "a-secret-of-the-test"


class S3(Origin):
    objects, parts, lock = {}, {}, threading.Lock()

    def signature_is_right(self):
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        said = re.fullmatch(r"AWS4-HMAC-SHA256 Credential=([^,]*), ?SignedHeaders=([^,]*), ?Signature=(.*)", self.headers.get("Authorization", ""))
        if not said:
            return False
        scope = said[1].split("/")
        request = AWSRequest(self.command, f"http://{self.headers['Host']}{self.path}", {n: self.headers[n] for n in said[2].split(";")})
        request.context["timestamp"] = self.headers["X-Amz-Date"]
        auth = S3SigV4Auth(Credentials(KEY, SECRET), "s3", scope[2])
        text = auth.string_to_sign(request, auth.canonical_request(request))
        return scope[0] == KEY and auth.signature(text, request) == said[3]

    def handle_any(self):
        body = self.body()
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            rest, body = body, b""
            while True:
                line, _, rest = rest.partition(b"\r\n")
                size = int(line.split(b";")[0], 16)
                if size == 0:
                    break
                body, rest = body + rest[:size], rest[size + 2 :]
        if not self.signature_is_right():
            return self.answer(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        digest = self.headers.get("X-Amz-Content-SHA256", "")
        if re.fullmatch("[0-9a-f]{64}", digest) and hashlib.sha256(body).hexdigest() != digest:
            return self.answer(400, b"<Error><Code>XAmzContentSHA256Mismatch</Code></Error>")
        path, _, query = self.path.partition("?")
        query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        tag = '"%s"' % hashlib.md5(body).hexdigest()
        with self.lock:
            if self.command == "POST" and "uploads" in query:
                self.parts[path] = {}
                return self.answer(200, b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
            if self.command == "PUT" and "partNumber" in query:
                self.parts[path][int(query["partNumber"])] = body
                return self.answer(200, headers=[("ETag", tag)])
            if self.command == "POST":
                self.objects[path] = b"".join(part for _, part in sorted(self.parts.pop(path).items()))
                return self.answer(200, b'<CompleteMultipartUploadResult><ETag>"whole"</ETag></CompleteMultipartUploadResult>')
            if self.command == "PUT":
                self.objects[path] = body
                return self.answer(200, headers=[("ETag", tag)])
            if self.command == "DELETE":
                self.objects.pop(path, None)
                return self.answer(204)
            found = self.objects.get(path)
        if found is None:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        headers = [("ETag", '"%s"' % hashlib.md5(found).hexdigest()), ("Last-Modified", "Tue, 01 Jan 2019 00:00:00 GMT"), ("Accept-Ranges", "bytes")]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.command == "GET":
            first, last = int(asked[1]), min(int(asked[2] or len(found)), len(found) - 1)
            headers.append(("Content-Range", f"bytes {first}-{last}/{len(found)}"))
            return self.answer(206, found[first : last + 1], headers)
        self.answer(200, found, headers + [("Content-Length", str(len(found)))])


class Echo(Origin):
    def handle_any(self):
        body = self.body()
        path = self.path.partition("?")[0]
        if self.command == "POST":
            return self.answer(200, hashlib.sha256(body).hexdigest().encode(), [("Cache-Control", "no-store")])
        with open(os.path.join(sys.argv[2], os.path.basename(path)), "rb") as file:
            kind = "text/html" if path.endswith(".html") else "application/octet-stream"
            self.answer(200, file.read(), [("Content-Type", kind), ("Cache-Control", "max-age=60")])


server = ThreadingHTTPServer(("127.0.0.1", 0), {"git": Git, "s3": S3, "echo": Echo}[sys.argv[1]])
print(server.server_address[1], flush=True)
server.serve_forever()
