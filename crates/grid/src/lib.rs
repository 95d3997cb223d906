//! Decisions of the build grid. Pure: events and a time in, actions out.
