"""The exit codes: a contract with scripts. Nothing is imported here, so that main starts fast."""

DONE, USAGE, FAILED, UNREACHABLE, INTERRUPTED = 0, 2, 3, 4, 130
