"""This package runs the controls inside other trainers.

An integration imports only the core of the package, and no other module imports an integration.
"""
