//! What the store promises, seen through its public interface.

mod chunking;
mod collecting;
mod committing;
mod crash;
mod damage;
mod disk_full;
mod holding;
mod ingest;
mod model;
mod moving;
mod opening;
mod planning;
mod reading;
mod roots;
mod support;
