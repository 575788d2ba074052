"""What differs between the versions of verl that this package runs on; nothing else knows which one is installed."""
