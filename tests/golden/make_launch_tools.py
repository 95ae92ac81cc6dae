"""Writes launch_tools.json, for tests/launch: what SkyPilot and xpk accept, from themselves.

Both are too heavy to be test dependencies (SkyPilot 0.14.1 alone: 430 MB). In an environment of its own:

  pip install skypilot==0.14.1 xpk==1.16.0 && python tests/golden/make_launch_tools.py
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

from sky.utils import schemas
from xpk.parser.storage import set_storage_parser
from xpk.parser.workload import set_workload_parsers


def standard(schema):
  """JSON Schema without SkyPilot's own keyword for an enum in any case."""
  if isinstance(schema, list):
    return [standard(s) for s in schema]
  if not isinstance(schema, dict):
    return schema
  schema = {key: standard(value) for key, value in schema.items() if key != "description"}
  if "case_insensitive_enum" in schema:
    schema["pattern"] = f"^(?i:{'|'.join(schema.pop('case_insensitive_enum'))})$"
  return schema


def excerpt(schema, *properties: str) -> dict:
  """The schema with only these properties; any other one is an error."""
  kept = {name: schema["properties"][name] for name in properties}
  return standard({"type": "object", "additionalProperties": False, "properties": kept})


def options(parser: argparse.ArgumentParser, *command: str) -> dict[str, list[str]]:
  """Options of a subcommand, all and required."""
  for word in command:
    subcommands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parser = subcommands.choices[word]
  actions = [a for a in parser._actions if a.option_strings]
  longest = lambda some: sorted(max(a.option_strings, key=len) for a in some)
  groups = [g._group_actions for g in parser._mutually_exclusive_groups if g.required]
  return {
    "options": longest(actions),
    "required": longest(a for a in actions if a.required),
    "one_of": [sorted(max(a.option_strings, key=len) for a in group) for group in groups],
  }


if __name__ == "__main__":
  workload, storage = argparse.ArgumentParser(), argparse.ArgumentParser()
  set_workload_parsers(workload)
  set_storage_parser(storage)
  resources = schemas._get_single_resources_schema()
  resource = excerpt(
    resources, "infra", "accelerators", "accelerator_args", "use_spot", "job_recovery", "disk_size"
  )
  # On a client SkyPilot lets unknown fields of job_recovery pass, for plug-ins of the server.
  resource["properties"]["job_recovery"]["anyOf"][1]["additionalProperties"] = False
  content = {
    "versions": {name: version(name) for name in ("skypilot", "xpk")},
    "task": excerpt(
      schemas.get_task_schema(),
      *("name", "workdir", "num_nodes", "resources", "file_mounts", "setup", "run", "envs"),
    ),
    "resources": resource,
    "storage": excerpt(schemas.get_storage_schema(), "name", "source", "store", "persistent", "mode"),
    "xpk workload create": options(workload, "create"),
    "xpk workload delete": options(workload, "delete"),
    "xpk storage attach": options(storage, "attach"),
  }
  path = Path(__file__).parent / "launch_tools.json"
  path.write_text(json.dumps(content, indent=1) + "\n")
