//! Runs one builder process in Linux namespaces.
