"""Published data sets on this machine: fetched, and shown as they are divided over devices."""
