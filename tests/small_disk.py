"""A disk that is full soon: a tmpfs in a mount namespace, gone with the process that asked for it."""

import functools
import subprocess
from pathlib import Path


@functools.cache
def namespace() -> tuple[str, ...] | None:
  """What to start a command with so that it may mount: as root, or where users may have such namespaces."""
  for prefix in (("unshare", "-m"), ("unshare", "-Urm")):
    command = [*prefix, "mount", "-t", "tmpfs", "-o", "size=4k", "none", "/tmp"]
    try:
      if subprocess.run(command, capture_output=True).returncode == 0:
        return prefix
    except OSError:  # no util-linux
      return None
  return None


def mount(folder: Path, size: int) -> None:
  """Of `size` bytes, a multiple of 4096."""
  folder.mkdir(exist_ok=True)
  subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)


def resize(folder: Path, size: int) -> None:
  subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


def unmount(folder: Path) -> None:
  subprocess.run(["umount", folder], check=True)
