"""The Python interface: submit a job, wait for it, read what it made."""
