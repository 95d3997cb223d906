//! The chunk store on disk.
