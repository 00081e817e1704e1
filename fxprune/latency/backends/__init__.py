"""What runs a network on a device so that it can be timed: a protocol, a registry and one file a backend."""
