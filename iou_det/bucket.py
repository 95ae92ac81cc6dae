"""Google Cloud Storage: made ready for gs:// paths; found out in seconds whether a bucket may be used."""

import functools
import logging as std_logging
import os
import uuid
import warnings
from dataclasses import dataclass
from typing import Any

from absl import logging

from iou_det.errors import UserError

SECONDS = 10  # to wait for an answer; asked three times at most, where gcsfs would ask for half a minute each
SCOPE = "https://www.googleapis.com/auth/devstorage.full_control"
LOG_IN = (
  "log in by `gcloud auth application-default login`, name a key file in GOOGLE_APPLICATION_CREDENTIALS, or "
  "use a machine whose service account (and its scope) may use the bucket"
)


@dataclass(frozen=True)
class Storage:
  """Where Google's storage (or an emulator of it) is asked, and as whom."""

  files: Any  # gcsfs's file system, the one that epath uses
  session: Any  # of requests
  who: str  # in messages

  def ask(self, what: str, bucket: str, method: str, path: str, **request: Any) -> None:
    """One request below `path`; a UserError if the bucket cannot be used so."""
    import requests

    headers: dict[str, str] = {}
    self.files.credentials.apply(headers)
    url = self.files.base.removesuffix("storage/v1/") + path
    try:
      answer = self.session.request(method, url, headers=headers, timeout=SECONDS, **request)
    except requests.RequestException as error:
      reason = type(error).__name__
      raise UserError(f"gs://{bucket} cannot be reached at {url} ({reason}); check the network") from None
    if answer.status_code == 404:
      raise UserError(f"there is no bucket gs://{bucket}; make it, or give another path")
    if answer.status_code >= 400:
      raise UserError(f"gs://{bucket}: {self.who} may not {what} (HTTP {answer.status_code}); {LOG_IN}")


@functools.cache
def connect() -> Storage:
  """Finds credentials and sets up what epath reads and writes gs:// by; a UserError if that is not there."""
  # gcsfs's part for zonal buckets asks with other credentials, and warns at every file when it has none.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  try:
    import fsspec
    import gcsfs  # noqa: F401
    import google.auth
    import requests
    from google.auth.transport.requests import Request
  except ImportError:
    raise UserError("paths on gs:// need gcsfs: pip install -e '.[gcs]'") from None
  for name in (
    "gcsfs",
    "google",
    "urllib3",
  ):  # what fails comes as an exception; they log it too
    std_logging.getLogger(name).setLevel(std_logging.CRITICAL)
  token: Any = "anon"
  who = "the emulator's user"
  if not os.environ.get("STORAGE_EMULATOR_HOST"):
    try:
      with warnings.catch_warnings(action="ignore"):  # of credentials without a project for quotas
        token, project = google.auth.default(scopes=[SCOPE])
      # Orbax's own client of the storage wants a project named, and does nothing with it.
      os.environ.setdefault("GOOGLE_CLOUD_PROJECT", project or "unknown")
      token.refresh(functools.partial(Request(), timeout=SECONDS))
      who = getattr(token, "service_account_email", "") or "who is logged in"
    except google.auth.exceptions.DefaultCredentialsError as error:
      reason = str(error).split(". ")[0].strip()
      who = f"someone without credentials ({reason})"
      logging.warning(f"no Google credentials ({reason}): gs:// is read as anybody may; to write, {LOG_IN}")
    except google.auth.exceptions.GoogleAuthError as error:
      raise UserError(f"gs://: the Google credentials are refused ({error}); {LOG_IN}") from None
  # Other processes, and Orbax by other means than gcsfs, write what it would not see in what it once listed.
  ours = {"token": token, "use_listings_cache": False}
  fsspec.config.conf["gcs"] = ours | fsspec.config.conf.get("gcs", {})
  files = fsspec.filesystem("gcs", finalize_on_close=True)  # as epath asks for it
  # It has no folders; gcsfs makes the bucket where it may not look at it, as with a role for objects alone.
  files.makedirs = files.mkdir = lambda path, **options: None
  session = requests.Session()
  again = requests.adapters.Retry(
    total=2, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None,
    raise_on_status=False,
  )  # fmt: skip
  for scheme in ("https://", "http://"):
    session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=again))
  return Storage(files, session, who)


@functools.cache
def check_readable(bucket: str) -> None:
  """A UserError if the bucket is not there, or may not be listed."""
  objects = f"storage/v1/b/{bucket}/o"
  connect().ask("list objects in it", bucket, "GET", objects, params={"maxResults": 1})


@functools.cache
def check_writable(bucket: str, name: str) -> None:
  """A UserError if no object can be written and removed beside `name`; to replace one takes both.

  Nor if the bucket itself may not be looked at, which Orbax does before it saves.
  """
  look = "look at it (storage.buckets.get, as of the role Storage Legacy Bucket Reader)"
  connect().ask(look, bucket, "GET", f"storage/v1/b/{bucket}")
  probe = f"{name}.probe-{uuid.uuid4().hex}"  # not inside: a workdir that is new has to be empty
  new = {"params": {"uploadType": "media", "name": probe}, "data": b"probe"}
  connect().ask("write to it", bucket, "POST", f"upload/storage/v1/b/{bucket}/o", **new)
  one = f"storage/v1/b/{bucket}/o/{probe.replace('/', '%2F')}"
  connect().ask("remove objects from it", bucket, "DELETE", one)
