"""Tensor files as other programs write them; the hub and torch are replaced."""

import collections
import io
import os
import pickle
import struct
import sys
import types

import numpy as np
import pytest
from safetensors.numpy import save_file

from iou_det.errors import UserError
from iou_det.weights.files import KNOWN, read_tensors

ARRAYS = {
  "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
  "norm.bias": np.arange(3, dtype=np.float16),
  "count": np.array(7),
}


def check(tensors):
  assert tensors.keys() == ARRAYS.keys()
  for name, x in ARRAYS.items():
    np.testing.assert_array_equal(tensors[name], x)
    assert tensors[name].shape == x.shape


def error(source):
  with pytest.raises(UserError) as raised:
    read_tensors(source)
  message = str(raised.value)
  assert "\n" not in message
  return message


# --- safetensors, the hub ---


def test_safetensors_file(tmp_path):
  save_file(ARRAYS, tmp_path / "file.safetensors")
  file = read_tensors(tmp_path / "file.safetensors")
  check(file.tensors)
  assert file.others == {}


def test_truncated_safetensors_file(tmp_path):
  path = tmp_path / "file.safetensors"
  save_file(ARRAYS, path)
  whole = path.read_bytes()
  for size in (0, 5, 60, len(whole) - 1):
    path.write_bytes(whole[:size])
    assert "file.safetensors is not a whole safetensors file" in error(path)


@pytest.mark.parametrize(
  "name", ["nowhere.safetensors", "nowhere.pth", "nowhere.pkl", "folder/", "notes.txt"]
)
def test_what_is_not_there_or_of_another_kind(name, tmp_path):
  (tmp_path / "folder").mkdir()
  (tmp_path / "notes.txt").write_text("x")
  message = error(tmp_path / name)
  assert ".safetensors, .pth or .pkl" in message


def test_hub_id_is_downloaded(tmp_path, monkeypatch):
  save_file(ARRAYS, tmp_path / "file.safetensors")
  asked = []

  def download(repo, filename):
    asked.append((repo, filename))
    return str(tmp_path / "file.safetensors")

  monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
  check(read_tensors("timm/resnet18.tv_in1k").tensors)
  assert asked == [("timm/resnet18.tv_in1k", "model.safetensors")]


def test_a_failing_download_is_a_user_error(monkeypatch):
  from huggingface_hub.errors import LocalEntryNotFoundError

  def download(repo, filename):
    raise LocalEntryNotFoundError("Cannot find the file.\nPlease check your connection.")

  monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
  assert "(Cannot find the file.)" in error("timm/resnet18.tv_in1k")


@pytest.mark.parametrize("module, suffix", [("huggingface_hub", ""), ("torch", ".pth")])
def test_what_to_install_is_said(module, suffix, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, module, None)
  path = tmp_path / f"file{suffix}"
  path.touch()
  source = str(path) if suffix else "timm/resnet18.tv_in1k"
  expected = "pip install torch" if module == "torch" else "pip install -e '.[pretrained]'"
  assert expected in error(source)


# --- .pth, with a stand-in for torch (the tests do not install it) ---


class Tensor:
  """What the loader uses of torch.Tensor."""

  def __init__(self, array):
    self.array = array

  def detach(self):
    return self

  def float(self):
    return Tensor(self.array.astype(np.float32))

  def numpy(self):
    return self.array


@pytest.fixture
def pth(tmp_path, monkeypatch):
  """Function: what torch.load returns or raises -> a path, and the list of the calls of torch.load."""

  def answer_with(answer):
    calls = []

    def load(path, **options):
      calls.append((path, options))
      if isinstance(answer, Exception):
        raise answer
      return answer

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load, Tensor=Tensor))
    path = tmp_path / "file.pth"
    path.touch()
    return path, calls

  return answer_with


def state():
  return {name: Tensor(x) for name, x in ARRAYS.items()}


def test_pth_file_is_read_by_the_weights_only_loader(pth):
  path, calls = pth(state())
  file = read_tensors(path)
  check(file.tensors)
  assert all(x.dtype == np.float32 for x in file.tensors.values())
  assert calls == [(path, {"map_location": "cpu", "weights_only": True})]


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_training_checkpoint_is_unwrapped(key, pth, caplog):
  path, _ = pth(
    {"optimizer": {"state": {0: Tensor(np.zeros(2))}}, key: state(), "epoch": 3, "meta": {"a": 1}}
  )
  with caplog.at_level("INFO"):
    file = read_tensors(path)
  check(file.tensors)
  assert file.others["meta"] == {"a": 1} and file.others["epoch"] == 3
  assert f"the tensors are in '{key}'; beside it, not used: epoch, meta, optimizer" in caplog.text


@pytest.mark.parametrize("answer, message", [
  (pickle.UnpicklingError("Weights only load failed. Set weights_only=False"), "objects other than tensors"),
  (RuntimeError("not a ZIP archive"), "is damaged"),
  (struct.error("unpack requires a buffer of 4 bytes"), "is damaged"),
  ([Tensor(np.zeros(1))], "holds a list"),
  ({"epoch": 3, "conv1.weight": Tensor(np.zeros(1))}, "more than tensors: 1 other (epoch)"),
  ({"model": {"a": Tensor(np.zeros(1)), "b": "text"}}, "more than tensors: 1 other (b)"),
])  # fmt: skip
def test_pth_file_that_is_not_a_state_dict(pth, answer, message):
  path, _ = pth(answer)
  text = error(path)
  assert message in text and str(path) in text and "weights_only=False" not in text


# --- .pkl ---


def write_pickle(path, content, protocol=2):
  path.write_bytes(pickle.dumps(content, protocol))
  return path


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_of_the_model_zoo(protocol, tmp_path):
  content = {"model": collections.OrderedDict(ARRAYS), "__author__": "somebody", "matching_heuristics": True}
  file = read_tensors(write_pickle(tmp_path / "file.pkl", content, protocol))
  check(file.tensors)
  assert file.others == {"__author__": "somebody", "matching_heuristics": True}


def test_pickle_of_python_2_and_numpy_1(tmp_path):
  """Names of modules and strings of bytes as they were written then."""
  data = pickle.dumps({"a": ARRAYS["conv.weight"], "b": np.float32(2.5)}, 2)
  data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
  assert b"numpy.core" in data
  (tmp_path / "file.pkl").write_bytes(data)
  with pytest.raises(UserError, match=r"more than tensors: 1 other \(b\)"):
    read_tensors(tmp_path / "file.pkl")
  raw = ARRAYS["conv.weight"].tobytes()
  old = io.BytesIO()
  old.write(b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R")
  old.write(b"(K\x01(K\x02K\x03K\x02K\x02tcnumpy\ndtype\nU\x02f4K\x00K\x01\x87R")
  old.write(b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
  old.write(b"T" + struct.pack("<i", len(raw)) + raw + b"tbs.")
  (tmp_path / "file.pkl").write_bytes(old.getvalue())
  np.testing.assert_array_equal(read_tensors(tmp_path / "file.pkl").tensors["a"], ARRAYS["conv.weight"])


class Payload:
  """Writes a file when it is unpickled."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def make_file(path):
  open(path, "w").close()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function, name", [
  (os.system, "system"), (eval, "eval"), (open, "open"), (make_file, "make_file"),
  (np.fromfile, "fromfile"), (np.load, "load"), (getattr, "getattr"),
])  # fmt: skip
def test_code_in_a_pickle_is_not_executed(function, name, protocol, tmp_path, monkeypatch):
  victim = tmp_path / "victim"
  arguments = {
    "system": [f"touch {victim}"],
    "eval": [f"open({str(victim)!r}, 'w')"],
    "open": [str(victim), "w"],
    "make_file": [str(victim)],
  }
  payload = Payload(function, *arguments.get(name, ["x", "y"]))
  content = {"model": {**ARRAYS, "x": payload}}
  path = write_pickle(tmp_path / "file.pkl", content, protocol)
  if name in ("system", "make_file"):  # it would work
    pickle.loads(path.read_bytes())
    victim.unlink()
  message = error(path)
  assert name in message and "nothing was executed" in message and "file.pkl" in message
  assert not victim.exists()


def test_a_module_that_a_pickle_names_is_not_imported(tmp_path, monkeypatch):
  (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'victim')!r}, 'w')\nx = 1\n")
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "file.pkl").write_bytes(b"cevil_module\nx\n.")
  assert "evil_module.x" in error(tmp_path / "file.pkl")
  assert not (tmp_path / "victim").exists() and "evil_module" not in sys.modules


def test_numpy_itself_is_out_of_reach(tmp_path):
  """numpy.ndarray of objects over a buffer would take the buffer's bytes for addresses."""
  path = tmp_path / "file.pkl"
  assert "not a whole pickle" in error(write_pickle(path, {"a": Payload(np.ndarray, (1,), "O", b"A" * 8)}, 2))
  assert "not a whole pickle" in error(
    write_pickle(path, {"meta": Payload(np.ndarray, (1,)), "model": ARRAYS})
  )


@pytest.mark.parametrize("module, name", KNOWN)
def test_what_a_pickle_is_given_cannot_be_changed_by_it(module, name, tmp_path):
  path = tmp_path / "file.pkl"
  for state in (b"}U\x08__call__K\x01s", b"(N}U\x08__call__K\x01st", b"(N}U\x0c__defaults__K\x01st"):
    path.write_bytes(f"\x80\x02c{module}\n{name}\n".encode("latin1") + state + b"b.")
    assert "not a whole pickle" in error(path)
  assert set(read_tensors(write_pickle(path, {"model": ARRAYS}, 2)).tensors) == set(ARRAYS)


def test_objects_in_an_array_and_other_contents(tmp_path):
  path = tmp_path / "file.pkl"
  assert "an array of type 'O8', not of plain numbers" in error(write_pickle(path, {"a": np.array([None])}))
  assert "1 other (b)" in error(write_pickle(path, {"model": {"b": "text"}}))
  assert "holds a list" in error(write_pickle(path, [ARRAYS["count"]]))


def test_truncated_pickle(tmp_path):
  path = write_pickle(tmp_path / "file.pkl", {"model": ARRAYS}, 2)
  whole = path.read_bytes()
  for size in range(0, len(whole), 7):
    path.write_bytes(whole[:size])
    assert "file.pkl is not a whole pickle of arrays" in error(path)
  path.write_bytes(b"\x93NUMPY is no pickle")
  assert "is not a whole pickle" in error(path)
