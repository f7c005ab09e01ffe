"""Prefect deployments of ShuntServe: one file per deployment, what they share in modules that begin with `_`.

A flow starts a job's controller and watches it. The controller is a process of its own, so nothing that is generated
depends on a flow's life: a flow that died is run again and takes up watching.
"""
