"""Workflow -> Plan: check types, fuse, partition, choose batch sizes, assign domains."""

from aaflow.compiler.compile import compile_workflow
from aaflow.compiler.plan import Edge, Listing, Plan, PlannedOperator, Stage

__all__ = ["Edge", "Listing", "Plan", "PlannedOperator", "Stage", "compile_workflow"]
