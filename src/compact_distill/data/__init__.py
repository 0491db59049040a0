"""Data: read, check and join problems and rationales; export them for other trainers."""

from compact_distill.data.load import load_instances, load_problems
from compact_distill.data.write import ExportCounts, export_instances

__all__ = ["ExportCounts", "export_instances", "load_instances", "load_problems"]
