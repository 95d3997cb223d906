//! End-to-end tests: real Nix clients against real nodes.
