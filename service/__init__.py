"""The daemon: joins streams and models, and owns time, files and threads."""
