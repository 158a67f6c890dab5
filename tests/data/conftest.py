import dataclasses
import gzip
import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from distillab.data.cifar import CIFAR10, CifarArchive
from distillab.data.download import RemoteFile

TRAIN_FILES = {"data_batch_1.bin": 6, "data_batch_2.bin": 6}
TEST_FILES = {"test_batch.bin": 4}


@pytest.fixture(autouse=True)
def _loopback_needs_no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def records(number, *, seed, label_bytes=1, highest=9):
    """Records of an archive as (labels, images [N, 32, 32, 3], bytes), made channel by channel."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, highest + 1, number)
    images = generator.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    content = b""
    for label, image in zip(labels, images, strict=True):
        planes = b"".join(image[:, :, channel].tobytes() for channel in range(3))
        content += bytes([0] * (label_bytes - 1) + [label]) + planes
    return labels, images, content


def tar_bytes(members):
    """A .tar.gz of (name, bytes) pairs or ready (TarInfo, bytes) pairs."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if not isinstance(name, tarfile.TarInfo):
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), compresslevel=1)


def archive_for(content, url="http://127.0.0.1:9/cifar-10-binary.tar.gz", **changes) -> CifarArchive:
    """CIFAR-10 in small: the real description with other numbers."""
    file = RemoteFile(url, len(content), hashlib.sha256(content).hexdigest())
    files = {"train_files": TRAIN_FILES, "test_files": TEST_FILES}
    return dataclasses.replace(CIFAR10, file=file, **{**files, **changes})


def good_members():
    members = [(f"{CIFAR10.folder}/batches.meta.txt", b"airplane\n")]
    for seed, (name, number) in enumerate({**TRAIN_FILES, **TEST_FILES}.items()):
        members.append((f"{CIFAR10.folder}/{name}", records(number, seed=seed)[2]))
    return members


class Server:
    """An HTTP server on loopback; `answers` says how it treats each request in turn, the last one for ever."""

    def __init__(self, content):
        self.content = content
        self.answers = ["whole"]
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer = outer.answers[min(outer.requests, len(outer.answers) - 1)]
                outer.requests += 1
                outer.answer(self, answer)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/cifar-10-binary.tar.gz"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request, answer):
        if isinstance(answer, int):
            request.send_error(answer)
            return
        body = bytearray(self.content)
        if answer == "altered":
            body[len(body) // 2] ^= 1
        if answer == "longer":
            body += b"more"
        request.send_response(200)
        if answer != "silently cut":
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        sent = len(body) // 2 if "cut" in answer else len(body)
        request.wfile.write(body[:sent])

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def good_archive():
    return tar_bytes(good_members())


@pytest.fixture
def server(good_archive):
    server = Server(good_archive)
    yield server
    server.close()


class Notes(list):
    """An observer that keeps the texts."""

    def __call__(self, event):
        self.append(event.text)


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
def make_archive():
    """Builders of archives, for tests in files that cannot import this one."""
    return archive_for


@pytest.fixture
def make_tar():
    return tar_bytes


@pytest.fixture
def members():
    return good_members()


@pytest.fixture
def make_records():
    return records
