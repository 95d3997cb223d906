//! What the Nix world fixes: formats and protocols.
