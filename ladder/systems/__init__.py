"""Systems: each a module with a `Config` and a `build`."""
