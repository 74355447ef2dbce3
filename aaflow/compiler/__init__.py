"""Workflow -> Plan: check types, fuse, partition, choose batch sizes, assign domains."""
