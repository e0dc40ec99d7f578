"""Verification that two adapters or models give the same outputs, and a method's contract."""
