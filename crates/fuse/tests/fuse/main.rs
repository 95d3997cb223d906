//! A store in memory, mounted: what it shows, what it asks for, and what happens when what it asks for does not come.

mod bad_input;
mod fake;
mod lab;
mod overlay;
mod paths;
mod reading;
mod served_elsewhere;
mod views;
