"""One model version's folder, checked against its manifest.

Imports `errors`, the manifest's protobuf and the shared preprocessing's spec. Start with `manifest`.
"""
