"""deploy/kserve/ against KServe's types, field by field."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from kubernetes_validate.utils import latest_version, schema_contents
from referencing import Registry, Resource

from support.promql import DEPLOY

DEFINITIONS = f"kubernetes-json-schema/v{latest_version()}-local-strict/_definitions.json"


def load(name: str) -> dict:
    return yaml.safe_load((DEPLOY / "kserve" / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def registry() -> Registry:
    kserve = json.loads(Path(__file__).with_name("kserve.json").read_text(encoding="utf-8"))
    documents = [Resource.from_contents(kserve)]
    documents.append(Resource.from_contents(schema_contents(DEFINITIONS, latest_version())))
    return documents @ Registry()


def check(document: dict, kind: str, registry: Registry) -> None:
    schema = {"$ref": f"https://kubernetes.io/kserve.json#/$defs/{kind}"}
    jsonschema.Draft202012Validator(schema, registry=registry).validate(document)


KINDS = [
    ("serving-runtime.yaml", "V1alpha1ServingRuntime"),
    ("inference-service.yaml", "V1beta1InferenceService"),
]


@pytest.mark.parametrize(("file", "kind"), KINDS)
def test_the_resource_has_only_fields_that_its_type_has(registry, file, kind):
    check(load(file), kind, registry)


@pytest.mark.parametrize(("file", "kind"), KINDS)
def test_a_misspelt_field_would_be_found(registry, file, kind):
    document = load(file)
    document["spec"]["protocolVersion s"] = ["grpc-v2"]

    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        check(document, kind, registry)


def test_a_misspelt_field_of_a_container_would_be_found(registry):
    document = load("serving-runtime.yaml")
    document["spec"]["containers"][0]["argz"] = []

    with pytest.raises(jsonschema.ValidationError, match="argz"):
        check(document, "V1alpha1ServingRuntime", registry)


def test_the_service_asks_for_what_the_runtime_offers():
    runtime, model = (
        load("serving-runtime.yaml"),
        load("inference-service.yaml")["spec"]["predictor"]["model"],
    )

    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    formats = [(offer["name"], offer["version"]) for offer in runtime["spec"]["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
