"""The check before a job: hosts, what stands between them, and the links of every group."""
