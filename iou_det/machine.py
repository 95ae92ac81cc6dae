"""What this machine is: versions, devices, memory, cores, caches, disk, and how fast it decodes pictures.

Devices are asked in a process of their own: JAX takes what it finds, and waits for what another process has.
"""

import glob
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import psutil

from iou_det.bench.measure import cpu_model, versions
from iou_det.data.images import Unreadable, open_picture
from iou_det.data.pipeline import decode_in_one_thread, number_of_threads
from iou_det.finding import Finding
from iou_det.storage import SHARED

PACKAGES = ("optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless", "pillow", "pycocotools")
# A module of each extra of pyproject.toml that nothing else brings.
EXTRAS = {
  "cuda12": "jax_cuda12_plugin",
  "cuda13": "jax_cuda13_plugin",
  "tpu": "libtpu",
  "aot-gpu": "jax_cuda12_plugin",
  "aot-tpu": "libtpu",
  "pretrained": "huggingface_hub",
  "gcs": "gcsfs",
  "fast-eval": "hotcoco",
  "onnx": "jax2onnx",
  "video": "av",
  "wandb": "wandb",
  "mlflow": "mlflow",
  "heif": "pillow_heif",
}
SECONDS = 60.0  # that devices have to answer; JAX and CUDA take 5 to 20 from a cold disk
SAMPLE = 0.25  # seconds that decoding is timed
BUSY = 0.1  # of a GPU's memory in use before we are there: more than a desktop's windows take
LITTLE_DISK = 2**30  # bytes: less than a few checkpoints of a ResNet-50
ASK = """
import json, jax
limit = lambda d: (d.memory_stats() or {}).get("bytes_limit")
print(json.dumps([[d.platform, d.device_kind, limit(d)] for d in jax.local_devices()]))
"""


class Devices(NamedTuple):
  """What JAX finds; without any, `findings` say why."""

  platform: str = ""
  kind: str = ""
  number: int = 0
  memory: int | None = None  # bytes that JAX may take of one; None: not known, or that of the machine
  findings: tuple[Finding, ...] = ()


def installed() -> list[tuple[str, str]]:
  found = ", ".join(f"{name} {version}" for name, version in versions(*PACKAGES).items())
  there = [name for name, module in EXTRAS.items() if find_spec(module)]
  lacking = [name for name in EXTRAS if name not in there]
  return [
    ("versions", found),
    ("extras", f"{', '.join(there) or 'none'}; not installed: {', '.join(lacking) or 'none'}"),
  ]


def ask_devices(seconds: float = SECONDS) -> Devices:
  """The devices that a command would use, without taking their memory."""
  environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  try:
    done = subprocess.run(
      [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, timeout=seconds
    )
  except subprocess.TimeoutExpired:
    why = f"devices did not answer in {seconds:g} seconds: another process may hold them"
    return Devices(findings=(Finding("error", why, "end it, or set JAX_PLATFORMS=cpu to work without them"),))
  said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
  if done.returncode:
    why = f"JAX finds no devices: {said[-1][:300] if said else f'exit code {done.returncode}'}"
    todo = "end what holds them, mend the driver, or set JAX_PLATFORMS=cpu to work without them"
    return Devices(findings=(Finding("error", why, todo),))
  rows = json.loads(done.stdout.splitlines()[-1])
  name, kind, memory = rows[0]
  findings = []
  if name == "cpu" and glob.glob("/dev/nvidia[0-9]*") and os.environ.get("JAX_PLATFORMS") != "cpu":
    why = next((f" ({line[:200]})" for line in reversed(said) if "cuda" in line.lower()), "")
    todo = (
      "pip install 'iou-det[cuda13]' (or cuda12, by the driver), and see that no other process has the GPU"
    )
    findings.append(Finding("warning", f"there is an NVIDIA GPU that JAX does not use{why}", todo))
  return Devices(name, kind, len(rows), memory, (*findings, *busy_gpus()))


def busy_gpus() -> Iterator[Finding]:
  """GPUs whose memory others have."""
  if not shutil.which("nvidia-smi"):
    return
  query = ["nvidia-smi", "--query-gpu=index,memory.used,memory.total", "--format=csv,noheader,nounits"]
  try:
    rows = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS).stdout.splitlines()
    numbers = [[int(n) for n in row.split(",")] for row in rows]
  except (subprocess.TimeoutExpired, ValueError):
    return
  for index, used, total in numbers:
    if used > BUSY * total:
      what = f"other processes have {used} of the {total} MiB of GPU {index}"
      yield Finding(
        "warning", what, "end them (nvidia-smi shows them), or choose GPUs by CUDA_VISIBLE_DEVICES"
      )


def describe_devices(devices: Devices) -> str:
  if not devices.number:
    return "none answered: see below"
  memory = f", {size(devices.memory)} each" if devices.memory else ""
  kind = devices.kind if devices.kind != devices.platform else "no accelerator"
  return f"{devices.number} x {devices.platform} ({kind}{memory})"


class Limits(NamedTuple):
  """What this process may use: less than the machine has, in a container."""

  memory: int  # bytes
  available: int  # bytes of these that nobody has taken
  cores: int  # that it may run on
  share: float  # cores' worth of time that it may take


def limits() -> Limits:
  memory = psutil.virtual_memory()
  total, available = memory.total, memory.available
  cores = len(os.sched_getaffinity(0))
  worth = float(cores)
  for folder in control_groups("memory"):
    most = number(folder, "memory.max", "memory.limit_in_bytes")
    if most is not None and most < memory.total:
      used = number(folder, "memory.current", "memory.usage_in_bytes") or 0
      # Cached files are given back when memory is asked for.
      cached = next((int(v) for k, v in pairs(folder / "memory.stat") if k.endswith("inactive_file")), 0)
      total, available = min(total, most), min(available, most - max(0, used - cached))
  for folder in control_groups("cpu"):
    quota, _, period = text(folder / "cpu.max").partition(" ")
    quota = quota or text(folder / "cpu.cfs_quota_us")
    period = period or text(folder / "cpu.cfs_period_us")
    if quota.isdecimal() and period.isdecimal():
      worth = min(worth, int(quota) / int(period))
  return Limits(total, max(0, available), cores, worth)


def control_groups(controller: str) -> Iterator[Path]:
  """The folders of this process's control group and of those around it, version 1 or 2."""
  root = Path("/sys/fs/cgroup")
  for line in text(Path("/proc/self/cgroup")).splitlines():
    _, controllers, own = line.split(":", 2)
    if controllers and controller not in controllers.split(","):
      continue
    top = root / controllers if controllers else root
    # In a container the path may be that outside of it: then only the top is there.
    for folder in (top / own.lstrip("/"), *(top / own.lstrip("/")).parents):
      if folder.is_dir() and folder.is_relative_to(top):
        yield folder


def text(path: Path) -> str:
  try:
    return path.read_text(encoding="utf-8").strip()
  except OSError:
    return ""


def number(folder: Path, *names: str) -> int | None:
  """The number in the first of these files that has one."""
  return next((int(t) for name in names if (t := text(folder / name)).isdecimal()), None)


def pairs(path: Path) -> list[list[str]]:
  return [line.split() for line in text(path).splitlines() if len(line.split()) == 2]


def describe_limits(found: Limits) -> list[tuple[str, str]]:
  cores = f"{found.cores} of {cpu_model()}"
  if found.share < found.cores:
    cores += f", of which {found.share:g} cores' worth of time"
  return [
    ("memory", f"{size(found.available)} available of {size(found.memory)}"),
    ("cores", f"{cores}; {number_of_threads(0)} threads read pictures (config.data.threads=0)"),
  ]


def few_cores(found: Limits) -> Iterator[Finding]:
  if found.share < found.cores:
    what = f"this process sees {found.cores} cores and gets the time of {found.share:g}"
    yield Finding(
      "note", what, f"--config.data.threads={max(1, round(found.share)) + 2} reads with fewer threads"
    )


def room(folders: Sequence[Path]) -> tuple[list[tuple[str, str]], list[Finding]]:
  """The compile cache, shared memory, and the disks of these folders."""
  rows, findings = [], []
  cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
  rows.append(("compile cache", f"{cache or 'off'}{cached(Path(cache)) if cache else ''}"))
  if cache and "://" not in cache and not may_write(Path(cache)):
    todo = "set JAX_COMPILATION_CACHE_DIR to a folder that can be: else each start compiles anew"
    findings.append(Finding("warning", f"the compile cache {cache} cannot be written", todo))
  shared = shared_free()
  rows.append(
    ("shared memory", f"{SHARED}: {size(shared)} free (for config.data.workers and several processes)")
  )
  disks = {folder.stat().st_dev: folder for folder in reversed(folders)}
  for folder in reversed(disks.values()):
    free = psutil.disk_usage(str(folder)).free
    rows.append(("disk", f"{folder}: {size(free)} free"))
    if free < LITTLE_DISK:
      findings.append(
        Finding("warning", f"{folder} has {size(free)} free", "make room before something is written")
      )
  return rows, findings


def cached(folder: Path) -> str:
  """What is in a folder, in words."""
  try:
    sizes = [entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()]
  except OSError:  # not there yet, or another process is at it
    return ""
  return f": {len(sizes)} files, {size(sum(sizes))}"


def may_write(folder: Path) -> bool:
  """Also of one that is not there yet."""
  return os.access(next(p for p in (folder, *folder.absolute().parents) if p.exists()), os.W_OK)


def shared_free() -> int:
  """Bytes of shared memory that are free."""
  return psutil.disk_usage(SHARED).free if os.path.isdir(SHARED) else 0


def decoding(own: Sequence[bytes], found: Limits) -> str:
  """Pictures a second: of a made-up one, and of some of the user's."""
  decode_in_one_thread()
  rng = np.random.default_rng(0)
  smooth = cv2.resize(rng.integers(0, 256, (30, 40, 3), np.uint8), (640, 480))
  noisy = cv2.add(smooth, rng.integers(0, 20, smooth.shape, np.uint8))
  sets = [("a 640x480 JPEG", [cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()])]
  good = [data for data in own if decode(data)]
  if good:
    sets.append((f"{len(good)} of yours", good))
  threads = max(1, round(found.share))
  words = lambda n: f"{n} threads" if n > 1 else "one thread"
  rates = lambda files: ", ".join(
    f"{rate(files, n):.0f} a second in {words(n)}" for n in sorted({1, threads})
  )
  return "; ".join(f"{name}: {rates(files)}" for name, files in sets)


def decode(data: bytes) -> bool:
  try:
    open_picture(data)
  except Unreadable:
    return False
  return True


def rate(files: Sequence[bytes], threads: int) -> float:
  """Pictures a second that so many threads decode."""
  start = time.perf_counter()

  def work(first: int) -> int:
    done = 0
    while time.perf_counter() - start < SAMPLE:
      decode(files[(first + done) % len(files)])
      done += 1
    return done

  with ThreadPoolExecutor(threads) as pool:
    done = sum(pool.map(work, range(threads)))
  return done / (time.perf_counter() - start)


def size(number: float | None) -> str:
  """Bytes for people."""
  if number is None:
    return "unknown"
  unit, name = next(((u, n) for u, n in ((2**30, "GiB"), (2**20, "MiB")) if number >= u), (2**10, "KiB"))
  return f"{number / unit:.1f} {name}"
