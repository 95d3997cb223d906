//! The binary cache's server, asked over real connections by clients that are as good or bad as they like.

#[path = "http/bad_input.rs"]
mod bad_input;
#[path = "http/copies.rs"]
mod copies;
#[path = "http/damage.rs"]
mod damage;
#[path = "http/lab.rs"]
mod lab;
#[path = "http/reading.rs"]
mod reading;
#[path = "http/writable.rs"]
mod writable;
