"""Google Cloud Storage on this machine: gcp-storage-emulator in a thread, with what TensorStore needs.

That wants an object's generation in the answer, and to write on condition of it: the emulator does neither.
"""

import contextlib
import logging
import re
import socket
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects

BUCKET = "bucket"
PRIVATE, READ_ONLY = "private-bucket", "read-only-bucket"  # nobody may do anything there, or write
UNSEEN = (
  "unseen-bucket"  # where objects may be used, but the bucket not be looked at: roles for objects are so
)


class Emulator:
  """A running emulator: its address, what lies in it, and what is done when something is written."""

  def __init__(self):
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    self.server = server.create_server("localhost", port, in_memory=True, default_bucket=BUCKET)
    for name in (PRIVATE, READ_ONLY, UNSEEN):
      buckets.create_bucket(name, self.storage)
    url = f"http://localhost:{port}"
    self.environment = {
      "STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
      "no_proxy": "localhost"}  # fmt: skip
    self.written: list[str] = []  # names of objects, as often as they were
    self.on_write = lambda name: None

  @property
  def storage(self):
    return self.server._storage

  def names(self):
    return sorted(o["name"] for o in self.storage.get_file_list(BUCKET)[0])

  def read(self, name):
    return self.storage.get_file(BUCKET, name)

  def generation(self, bucket, name):
    try:
      return self.storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
      return "0"

  def answer(self, handler):
    """A handler of the emulator, with what it lacks."""

    def handle(request, response, storage):
      bucket, writes = request.params.get("bucket_name"), request.method in ("POST", "PUT", "DELETE")
      if bucket == PRIVATE or (bucket == READ_ONLY and writes):
        response.status = HTTPStatus.UNAUTHORIZED if bucket == PRIVATE else HTTPStatus.FORBIDDEN
        return
      if handler is buckets.get and bucket == UNSEEN:
        response.status = HTTPStatus.FORBIDDEN
        return
      name = request.params.get("object_id") or (request.query.get("name") or [""])[0]
      if handler is objects.insert and "upload_id" not in request.query:
        self.written.append(name)
        self.on_write(name)
        match = request.query.get("ifGenerationMatch")
        if match and match[0] != self.generation(bucket, name):
          response.status = HTTPStatus.PRECONDITION_FAILED
          return
      handler(request, response, storage)
      media = handler is objects.download or request.query.get("alt") == ["media"]
      if media and response.status < HTTPStatus.BAD_REQUEST:
        response["x-goog-generation"] = self.generation(bucket, name)

    return handle


@contextlib.contextmanager
def emulator():
  logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
  running, before = Emulator(), server.HANDLERS
  server.HANDLERS = [
    (path, {method: running.answer(handler) if re.search("bucket_name", path) else handler
            for method, handler in methods.items()})
    for path, methods in before
  ]  # fmt: skip
  running.server.start()
  running.server._api._httpd.handle_error = lambda request, address: None  # of clients that were killed
  try:
    yield running
  finally:
    running.server.stop()
    server.HANDLERS = before
