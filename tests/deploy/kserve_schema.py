"""Writes kserve.json: the JSON schemas of KServe's resources, from the models of the PyPI package kserve.

    pip download --no-deps kserve && python tests/deploy/kserve_schema.py kserve-*.whl

The package needs a hundred others to be imported, so its source is read. Kubernetes' own types are left to
the definitions that the package kubernetes-validate ships.
"""

import ast
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

from kubernetes_validate.utils import latest_version, schema_contents

ROOTS = ("V1alpha1ServingRuntime", "V1beta1InferenceService")
SIMPLE = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "object": {},
    "datetime": {"type": "string"},
}
KUBERNETES = "/api/_definitions.json#/$defs/"
GROUPS = (
    "io.k8s.api.core.v1.",
    "io.k8s.apimachinery.pkg.apis.meta.v1.",
    "io.k8s.apimachinery.pkg.api.resource.",
)


def definitions() -> dict[str, Any]:
    """Return Kubernetes' own types, by their full names, as the strict schemas have them."""
    path = f"kubernetes-json-schema/v{latest_version()}-local-strict/_definitions.json"
    return schema_contents(path, latest_version())


def models(wheel: Path) -> dict[str, tuple[dict[str, str], dict[str, str], list[str]]]:
    """Return of each type: attribute → type, attribute → key in JSON, and the attributes it must have."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if re.fullmatch(r"kserve/models/\w+\.py", name):
                source = archive.read(name).decode()
                required = re.findall(r"Invalid value for `(\w+)`, must not be `None`", source)
                for kind in (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)):
                    tables = {
                        statement.targets[0].id: ast.literal_eval(statement.value)
                        for statement in kind.body
                        if isinstance(statement, ast.Assign)
                        and isinstance(statement.targets[0], ast.Name)
                        and statement.targets[0].id in ("openapi_types", "attribute_map")
                    }
                    if tables:
                        found[kind.name] = (tables["openapi_types"], tables["attribute_map"], required)
    return found


class Schemas:
    """The types that were met so far, as JSON schemas."""

    def __init__(self, wheel: Path) -> None:
        self.types: dict[str, Any] = {}
        self._models = models(wheel)
        self._kubernetes = definitions()["$defs"]

    def of(self, kind: str) -> dict[str, Any]:
        """Return the schema of a type as the OpenAPI generator writes it, such as list[V1Container]."""
        if found := re.fullmatch(r"list\[(.+)\]", kind):
            return {"type": "array", "items": self.of(found[1])}
        if found := re.fullmatch(r"dict\(str, (.+)\)", kind):
            return {"type": "object", "additionalProperties": self.of(found[1])}
        if kind in SIMPLE:
            return SIMPLE[kind]
        if kind in self._models:
            if kind not in self.types:
                self._add(kind)
            return {"$ref": f"#/$defs/{kind}"}
        names = [group + kind.removeprefix("V1").replace("ResourceQuantity", "Quantity") for group in GROUPS]
        # What neither knows is let through: no field of ours has such a type.
        return next(({"$ref": KUBERNETES + name} for name in names if name in self._kubernetes), {})

    def _add(self, kind: str) -> None:
        kinds, keys, required = self._models[kind]
        schema = self.types[kind] = {"type": "object", "additionalProperties": False}
        if required:
            schema["required"] = [keys[name] for name in required]
        schema["properties"] = {
            # A status is the controller's to write.
            keys[name]: {} if name == "status" else self.of(kinds[name])
            for name in kinds
        }


if __name__ == "__main__":
    wheel = Path(sys.argv[1])
    schemas = Schemas(wheel)
    for root in ROOTS:
        schemas.of(root)
    head = {
        "$comment": f"Made by kserve_schema.py from {wheel.name}; kserve is licensed under Apache-2.0.",
        "$id": "https://kubernetes.io/kserve.json",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
    }
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    types = [
        f"    {json.dumps(kind)}: {json.dumps(schema)}" for kind, schema in sorted(schemas.types.items())
    ]
    text = "\n".join(["{", *lines, '  "$defs": {', ",\n".join(types), "  }", "}", ""])
    Path(__file__).with_name("kserve.json").write_text(text, encoding="utf-8")
