//! Whatever the value: what is written is read back, and only that.
