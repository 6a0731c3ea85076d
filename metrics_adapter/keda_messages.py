"""The messages of KEDA's external scaler protocol, described where they are used.

    package externalscaler; service ExternalScaler (proto3), the fields by their numbers

Built at run time out of the table below: code that protoc generates is tied to the protobuf release that made it, and
would be longer than what it describes.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "externalscaler"
_FIELD = descriptor_pb2.FieldDescriptorProto
STRING, BOOL, INT64, DOUBLE = _FIELD.TYPE_STRING, _FIELD.TYPE_BOOL, _FIELD.TYPE_INT64, _FIELD.TYPE_DOUBLE

# message: field: (number, type or name of a message, repeated).  `map<string, string>` is a repeated entry message.
MESSAGES: dict[str, dict[str, tuple[int, Any, bool]]] = {
    "ScaledObjectRef": {
        "name": (1, STRING, False),
        "namespace": (2, STRING, False),
        "scalerMetadata": (3, "ScaledObjectRef.ScalerMetadataEntry", True),
    },
    "IsActiveResponse": {"result": (1, BOOL, False)},
    "GetMetricSpecResponse": {"metricSpecs": (1, "MetricSpec", True)},
    "MetricSpec": {
        "metricName": (1, STRING, False),
        "targetSize": (2, INT64, False),
        "targetSizeFloat": (3, DOUBLE, False),
    },
    "GetMetricsRequest": {"scaledObjectRef": (1, "ScaledObjectRef", False), "metricName": (2, STRING, False)},
    "GetMetricsResponse": {"metricValues": (1, "MetricValue", True)},
    "MetricValue": {
        "metricName": (1, STRING, False),
        "metricValue": (2, INT64, False),
        "metricValueFloat": (3, DOUBLE, False),
    },
}


def _describe() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="externalscaler.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        _add_fields(file.message_type.add(name=name), fields)
    entry = file.message_type[0].nested_type.add(name="ScalerMetadataEntry")
    entry.options.map_entry = True
    _add_fields(entry, {"key": (1, STRING, False), "value": (2, STRING, False)})
    return file


def _add_fields(message: descriptor_pb2.DescriptorProto, fields: dict[str, tuple[int, Any, bool]]) -> None:
    for name, (number, kind, repeated) in fields.items():
        field = message.field.add(name=name, number=number)
        field.label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
        if isinstance(kind, str):
            field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
        else:
            field.type = kind


_pool = descriptor_pool.DescriptorPool()  # our own: another copy of this protocol in the process is nothing to us
_pool.Add(_describe())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


ScaledObjectRef = _message("ScaledObjectRef")
IsActiveResponse = _message("IsActiveResponse")
MetricSpec = _message("MetricSpec")
GetMetricSpecResponse = _message("GetMetricSpecResponse")
GetMetricsRequest = _message("GetMetricsRequest")
MetricValue = _message("MetricValue")
GetMetricsResponse = _message("GetMetricsResponse")
