"""Writes the description that the service is held against: openapi.yaml with corrections.yaml applied, as JSON.

A correction that does not apply is an error, and so is a description that is no valid OpenAPI. `description.py check FILE`
only says whether that one is valid.
"""

import json
import pathlib
import sys

import jsonpatch
import jsonpointer
import yaml
from openapi_spec_validator import validate


class Refused(Exception):
    pass


def corrected(description, corrections):
    for correction in corrections:
        where = f"{correction['op']} {correction['path']}"
        if not correction.get("reason"):
            raise Refused(f"{where} has no reason")
        if correction["op"] == "add" and jsonpointer.resolve_pointer(description, correction["path"], None) is not None:
            raise Refused(f"{where} is not needed: something is there")
        patch = {name: part for name, part in correction.items() if name != "reason"}
        try:
            description = jsonpatch.apply_patch(description, [patch])
        except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as error:
            raise Refused(f"{where} does not apply: {error}") from error
    return description


def write(folder, target):
    folder = pathlib.Path(folder)
    description = yaml.safe_load((folder / "openapi.yaml").read_text())
    description = corrected(description, yaml.safe_load((folder / "corrections.yaml").read_text()))
    validate(description)
    pathlib.Path(target).write_text(json.dumps(description))


if __name__ == "__main__":
    if sys.argv[1] == "check":
        validate(json.loads(pathlib.Path(sys.argv[2]).read_text()))
    else:
        write(*sys.argv[1:])
