"""The device agent. What imports any of it gets Rengo's own packages, see ``own_packages``."""

from fl_client.own_packages import prefer_own_packages

prefer_own_packages()
